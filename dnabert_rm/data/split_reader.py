"""Windows of one prepared folder: which shards are open, and what happens when one is bad."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dnabert_rm.data.manifest import Manifest
from dnabert_rm.data.shards import MEND, ShardFile, open_shard
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
MAX_MAPPED = 256
BAD_SHARD_RULES = ("fail", "skip")
_TOUCH_EVERY_SECONDS = 60.0
_NUM_REFETCHES = 3


class ShardReader:
    """Windows of one split of a prepared folder.

    A shard is checked when it is first opened in a process: its size, SHA-256, segments and ids. Shards on a local
    disk are mapped, at most `MAX_MAPPED` at a time: that costs page cache, which the system shares between workers
    and takes back, and 24 bytes a segment of the shards seen so far. Shards in the cache of a remote folder are
    opened for each window instead: one that has been evicted meanwhile is fetched again, and none that was evicted
    goes on taking room on the disk because it is mapped.
    """

    def __init__(self, folder: str | Path, split: str, storage: StorageSettings | None = None) -> None:
        """Reads the manifest, and looks whether all local shards are there; `DataError` says what is wrong."""
        storage = storage or StorageSettings()
        if storage.on_bad_shard not in BAD_SHARD_RULES:
            raise ConfigError(f"data.on_bad_shard {storage.on_bad_shard!r} must be one of {', '.join(BAD_SHARD_RULES)}")
        self.folder = prepared_folder(folder, storage)
        self.skips_bad = storage.on_bad_shard == "skip"
        self.manifest: Manifest = self.folder.manifest()
        self.shards = self.manifest.shards_of(split)
        self.bad: set[int] = set()
        self._known: dict[int, ShardFile] = {}
        self._mapped: OrderedDict[int, ShardFile] = OrderedDict()
        self._touched: dict[int, float] = {}
        if self.folder.is_local and not self.skips_bad:
            self._check_sizes()

    @property
    def shard_segments(self) -> list[list[int]]:
        """Tokens of each segment of each shard, as `EpochSampler` takes them."""
        return [shard.segments for shard in self.shards]

    def is_usable(self, number: int) -> bool:
        """Whether the shard can be read; a bad one is logged once and false for ever, or raises (`on_bad_shard`)."""
        if number in self._mapped:
            return True
        if number in self.bad:
            return False
        try:
            self._shard(number)
            return True
        except DataError as error:
            if not self.skips_bad:
                raise
            self._mark_bad(number, error)
            return False

    def tokens(self, shard: int, segment: int, start: int, stop: int, step: int = 1) -> NDArray:
        """Every `step`-th of the stored tokens `start` … `stop - 1` of a segment. `DataError` if the shard is bad."""
        if (mapped := self._mapped.get(shard)) is not None:
            return mapped.tokens(segment, start, stop, step)
        return self._read(shard, "tokens", segment, start, stop, step)

    def place(self, shard: int, segment: int, start: int, footprint: int) -> dict[str, Any]:
        """Where a window lies: `genome`, `contig`, `start`, `end` in bases of the forward strand, half-open, `strand`.

        BPE tokens have no fixed length, so what is given for them is the whole segment.
        """
        record = self._read(shard, "record", segment)
        place = {name: record[name] for name in ("genome", "contig", "start", "end")}
        if (k := self.manifest.tokenizer.k) is not None:
            place["start"] = record["start"] + start
            place["end"] = place["start"] + footprint + k - 1
        return {**place, "strand": record.get("strand", "+")}

    def _read(self, number: int, what: str, *args: int) -> Any:
        """Call a method of a shard; one that was evicted from the cache is fetched again."""
        for _ in range(_NUM_REFETCHES):
            shard = self._shard(number)
            try:
                return getattr(shard, what)(*args)
            except FileNotFoundError:
                self.folder.fetch(self.shards[number])
        info = self.shards[number]
        raise DataError(f"{self.folder.shown}: shard {info.name} does not stay in the cache; raise --data.cache_gb")

    def _shard(self, number: int) -> ShardFile:
        """The shard of that number, checked if this process sees it for the first time, and mapped if it is local."""
        if number not in self._known:
            self._known[number] = self._open(number)
        shard = self._known[number]
        if self.folder.is_local:
            self._map(number, shard)
        elif time.monotonic() > self._touched.get(number, 0.0) + _TOUCH_EVERY_SECONDS:
            self.folder.touch(self.shards[number])
            self._touched[number] = time.monotonic()
        return shard

    def _open(self, number: int) -> ShardFile:
        info, vocab_size = self.shards[number], self.manifest.tokenizer.vocab_size
        for attempt in range(_NUM_REFETCHES):
            path = self.folder.fetch(info)
            try:
                shard = open_shard(path, info, vocab_size)
                break
            except (DataError, FileNotFoundError) as error:
                # A copy in the cache may be damaged, or evicted by now: fetch it again.
                if not self.folder.drop(info) or attempt + 1 == _NUM_REFETCHES:
                    raise _as_data_error(error, path) from None
        if not self.folder.is_local:
            shard.unmap()
        return shard

    def _map(self, number: int, shard: ShardFile) -> None:
        if not shard.is_mapped:
            try:
                shard.map()
            except (OSError, ValueError) as error:
                raise _as_data_error(error, shard.path) from None
        self._mapped[number] = shard
        self._mapped.move_to_end(number)
        if len(self._mapped) > MAX_MAPPED:
            self._mapped.popitem(last=False)[1].unmap()

    def _mark_bad(self, number: int, error: DataError) -> None:
        self.bad.add(number)
        tokens = self.shards[number].tokens
        logger.warning("%s; skipped (--on-bad-shard skip), other windows stand in for its %d tokens", error, tokens)

    def _check_sizes(self) -> None:
        """Find missing and truncated shards before the run, not in the middle of it."""
        for info in self.shards:
            path = self.folder.fetch(info)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _as_data_error(error, path) from None
            if size != info.bytes:
                raise DataError(f"{path}: has {size} bytes, the manifest says {info.bytes}; {MEND}")


def _as_data_error(error: Exception, path: Path) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such shard, but the manifest names it; {MEND}")
    return DataError(f"{path}: can't be read as a shard ({error}); {MEND}")
