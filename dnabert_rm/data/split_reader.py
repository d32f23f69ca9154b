"""Reader of a split of a prepared folder: opens, checks and maps shards, and handles damaged or missing shards."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.manifest import Manifest
from dnabert_rm.data.shards import ADVICE, ShardFile, open_shard
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
MAX_MAPPED = 256
MAX_SOFT_MASK_BYTES = 1 << 26
BAD_SHARD_RULES = ("fail", "skip")
_TOUCH_INTERVAL_SECONDS = 60.0
_NUM_REFETCHES = 3
_ENTRY_BYTES = 400
"""Approximate memory in bytes of one entry in the dictionary of soft masks, apart from the mask itself."""


class SplitReader:
    """Reader of the stored tokens in one split of a prepared folder, addressed by shard and segment index.

    Each process checks a shard's size, SHA-256, segments and ids when it first opens the shard.

    Shards on a local disk are memory-mapped, at most `MAX_MAPPED` at a time. The maps use page cache, which workers
    share and the system can reclaim. Each shard opened so far also takes 24 bytes of memory per segment.

    Shards of a remote folder are fetched into the cache. They are not mapped but opened for each read, because a map
    would keep the disk space of an evicted file in use. An evicted shard is fetched again.

    The soft mask of a segment is read when it is first needed. It takes one bit per base, and the reader keeps at most
    `MAX_SOFT_MASK_BYTES`.
    """

    def __init__(self, folder: str | Path, split: str, storage: StorageSettings | None = None) -> None:
        """Read the manifest. Unless `on_bad_shard` is "skip", also check the sizes of local shards.

        Raises `DataError` for damaged or missing data, `ConfigError` for invalid settings.
        """
        storage = storage or StorageSettings()
        if storage.on_bad_shard not in BAD_SHARD_RULES:
            raise ConfigError(f"data.on_bad_shard {storage.on_bad_shard!r} must be one of {', '.join(BAD_SHARD_RULES)}")
        self.folder = prepared_folder(folder, storage)
        self.split = split
        self.skips_bad = storage.on_bad_shard == "skip"
        self.manifest: Manifest = self.folder.manifest()
        self.shards = self.manifest.shards_of(split)
        self.bad: set[int] = set()
        self._known: dict[int, ShardFile] = {}
        self._mapped: OrderedDict[int, ShardFile] = OrderedDict()
        self._touched: dict[int, float] = {}
        self._soft_masks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._soft_mask_bytes = 0
        if self.folder.is_local and not self.skips_bad:
            self._check_sizes()

    @property
    def shard_segments(self) -> list[NDArray[np.int64]]:
        """Number of tokens in each segment, as one array per shard. This is the input of `EpochSampler`."""
        return [shard.segments for shard in self.shards]

    def is_usable(self, number: int) -> bool:
        """Return whether a shard can be read.

        If the shard is damaged or missing, the setting `on_bad_shard` decides: "skip" logs the shard once and returns
        False, "fail" raises `DataError`.
        """
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
        """Return every `step`-th of the stored tokens `start` … `stop - 1` of a segment.

        Raises `DataError` if the shard is damaged or missing.
        """
        if (mapped := self._mapped.get(shard)) is not None:
            return mapped.tokens(segment, start, stop, step)
        return self._read(shard, "tokens", segment, start, stop, step)

    def soft_mask(self, shard: int, segment: int, first_byte: int, num_bytes: int) -> bytes:
        """Return `num_bytes` bytes of a segment's soft mask, which has one bit per base (`pack_ranges`).

        Raises `DataError` if the shard is damaged or missing, or has no valid soft mask.
        """
        packed = self._soft_masks.get((shard, segment))
        if packed is None:
            packed = self._load_soft_mask(shard, segment)
        return packed[first_byte : first_byte + num_bytes]

    def _load_soft_mask(self, shard: int, segment: int) -> bytes:
        """Read the soft masks of a segment and of those stored with it, and return the segment's.

        If the masks exceed `MAX_SOFT_MASK_BYTES`, drop those that were read first.
        """
        num_bases = self.shards[shard].segments + (self.manifest.tokenizer.k or 1) - 1
        masks: dict[int, bytes] = self._read(shard, "soft_masks", segment, num_bases)
        for number, packed in masks.items():
            if self._soft_masks.get((shard, number)) is None:
                self._soft_masks[shard, number] = packed
                self._soft_mask_bytes += len(packed) + _ENTRY_BYTES
        while self._soft_mask_bytes > MAX_SOFT_MASK_BYTES:
            self._soft_mask_bytes -= len(self._soft_masks.popitem(last=False)[1]) + _ENTRY_BYTES
        return masks[segment]

    def coordinates(self, shard: int, segment: int, start: int, stored_tokens: int) -> dict[str, Any]:
        """Return `genome`, `contig`, `start`, `end` and `strand` of `stored_tokens` tokens from index `start` on.

        The returned start and end are 0-based half-open positions on the forward strand. BPE tokens have no fixed
        length, so their coordinates cover the whole segment.
        """
        meta = self.meta(shard, segment)
        coordinates = {name: meta[name] for name in ("genome", "contig", "start", "end")}
        if (k := self.manifest.tokenizer.k) is not None:
            coordinates["start"] = meta["start"] + start
            coordinates["end"] = coordinates["start"] + stored_tokens + k - 1
        return {**coordinates, "strand": meta.get("strand", "+")}

    def meta(self, shard: int, segment: int) -> dict[str, Any]:
        """Return a segment's coordinates. Raises `DataError` if the shard is damaged or missing."""
        return self._read(shard, "meta", segment)

    def _read(self, number: int, method: str, *args: Any) -> Any:
        """Call a method of a shard. If the shard was evicted from the cache, fetch it again and retry."""
        for _ in range(_NUM_REFETCHES):
            shard = self._shard(number)
            try:
                return getattr(shard, method)(*args)
            except FileNotFoundError:
                self.folder.fetch(self.shards[number])
        info = self.shards[number]
        raise DataError(
            f"{self.folder.shown}: shard {info.name} is evicted from the cache before it is read; raise --data.cache_gb"
        )

    def _shard(self, number: int) -> ShardFile:
        """Return a shard. It is checked at its first use in this process, and mapped if it is local."""
        if number not in self._known:
            self._known[number] = self._open(number)
        shard = self._known[number]
        if self.folder.is_local:
            self._map(number, shard)
        elif time.monotonic() > self._touched.get(number, 0.0) + _TOUCH_INTERVAL_SECONDS:
            self.folder.touch(self.shards[number])
            self._touched[number] = time.monotonic()
        return shard

    def _open(self, number: int) -> ShardFile:
        info = self.shards[number]
        for attempt in range(_NUM_REFETCHES):
            path = self.folder.fetch(info)
            try:
                shard = open_shard(path, info, self.manifest.tokenizer.vocab_size)
                break
            except (DataError, FileNotFoundError) as error:
                # The copy in the cache may be damaged, or evicted by now, so fetch it again.
                if not self.folder.drop(info) or attempt + 1 == _NUM_REFETCHES:
                    raise _as_data_error(error, path) from None
        if not self.folder.is_local:
            shard.unmap()
        return shard

    def _map(self, number: int, shard: ShardFile) -> None:
        """Map a shard and mark it as most recently used.

        If more than `MAX_MAPPED` shards are then mapped, unmap the least recently used shard.
        """
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
        logger.warning(
            "%s; shard skipped (--on-bad-shard skip), and other windows replace its %d tokens", error, tokens
        )

    def _check_sizes(self) -> None:
        """Raise `DataError` if a shard is missing or has the wrong size, before any shard is read."""
        for info in self.shards:
            path = self.folder.fetch(info)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _as_data_error(error, path) from None
            if size != info.bytes:
                raise DataError(f"{path}: has {size} bytes, but the manifest gives {info.bytes}; {ADVICE}")


def _as_data_error(error: Exception, path: Path) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: is listed in the manifest, but the file is missing; {ADVICE}")
    return DataError(f"{path}: can't be read as a shard ({error}); {ADVICE}")
