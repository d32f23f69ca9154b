"""Windows from shards: index a tar once, then slice its segments in place (memory-mapped).

A shard is checked when it is first opened in a process: its size and SHA-256 against the manifest, its
segments' lengths against the manifest's. Nothing is unpacked to disk and nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.errors import DataError
from dnabert_rm.kmer import reverse_complement_ids
from dnabert_rm.shards import Manifest, ShardInfo, load_manifest, sha256_of_file

logger = logging.getLogger(__name__)
MAX_OPEN_SHARDS = 128
IDS_SUFFIX, RECORD_SUFFIX = ".ids.npy", ".json"


@dataclass(frozen=True)
class OpenShard:
    """A mapped shard: `data` its bytes, the ids' places in it, and where each segment's record lies."""

    data: NDArray[np.uint8]
    dtype: np.dtype
    offsets: list[int]
    lengths: list[int]
    records: list[tuple[int, int]]

    def ids(self, segment: int) -> NDArray:
        """All token ids of one segment, a read-only view of the file, (tokens,)."""
        offset, length = self.offsets[segment], self.lengths[segment]
        return self.data[offset : offset + length * self.dtype.itemsize].view(self.dtype)

    def record(self, segment: int) -> dict[str, Any]:
        """Where one segment comes from: `genome, contig, start, end, split`."""
        start, size = self.records[segment]
        return json.loads(self.data[start : start + size].tobytes())


def open_shard(path: Path, info: ShardInfo, *, check_sum: bool = True) -> OpenShard:
    """Map and check one shard; `DataError` names it and what is wrong."""
    try:
        size = path.stat().st_size
        if size != info.bytes:
            raise DataError(f"{path}: has {size} bytes, the manifest says {info.bytes}; copy or build the shard again")
        if check_sum and sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: is damaged (its SHA-256 is not the manifest's); copy or build the shard again")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        shard = _index(path, data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard, but the manifest names it; copy or build it again") from None
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as a shard ({error}); copy or build it again") from None
    if shard.lengths != info.segments:
        raise DataError(f"{path}: its segments are not those of the manifest; copy or build the shard again")
    return shard


def _index(path: Path, data: NDArray[np.uint8]) -> OpenShard:
    """Find every member of the tar; ValueError or TarError where something is not as it should be."""
    offsets, lengths, records = [], [], []
    dtypes: set[np.dtype] = set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.name.endswith(IDS_SUFFIX):
                header = io.BytesIO(data[member.offset_data : member.offset_data + min(member.size, 4096)].tobytes())
                version = np.lib.format.read_magic(header)
                if version != (1, 0):
                    raise ValueError(f"{member.name} has .npy version {version}, not (1, 0)")
                shape, _, dtype = np.lib.format.read_array_header_1_0(header)
                if len(shape) != 1 or dtype not in (np.uint16, np.uint32):
                    raise ValueError(f"{member.name} holds {dtype} of shape {shape}, not 1-D uint16 or uint32")
                if header.tell() + shape[0] * dtype.itemsize != member.size:
                    raise ValueError(f"{member.name} is cut short")
                offsets.append(member.offset_data + header.tell())
                lengths.append(shape[0])
                dtypes.add(dtype)
            elif member.name.endswith(RECORD_SUFFIX):
                records.append((member.offset_data, member.size))
            else:
                raise ValueError(f"unknown member {member.name!r}")
    if len(records) != len(offsets) or len(dtypes) != 1:
        raise ValueError("every segment needs one .ids.npy, all of one type, and one .json")
    return OpenShard(data, dtypes.pop(), offsets, lengths, records)


class ShardReader:
    """Windows of one split of a prepared folder, with a bounded number of shards open at a time.

    Memory: a mapped shard costs page cache, which the system shares between workers and takes back, and
    some hundred bytes a segment.
    """

    def __init__(self, folder: str | Path, split: str, *, max_open: int = MAX_OPEN_SHARDS, check_sum: bool = True) -> None:
        self.folder, self.split, self.max_open, self.check_sum = Path(folder), split, max_open, check_sum
        self.manifest: Manifest = load_manifest(folder)
        self.shards = self.manifest.shards_of(split)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Workers open their own shards: maps don't travel."""
        return {**self.__dict__, "_open": OrderedDict()}

    @property
    def shard_segments(self) -> list[list[int]]:
        """Tokens of each segment of each shard, as `EpochOrder` takes them."""
        return [shard.segments for shard in self.shards]

    def shard(self, number: int) -> OpenShard:
        """The open shard of that number, opened and checked if need be."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        info = self.shards[number]
        check_sum = self.check_sum and number not in self._checked
        self._open[number] = open_shard(self.folder / info.name, info, check_sum=check_sum)
        self._checked.add(number)
        if len(self._open) > self.max_open:
            self._open.popitem(last=False)
        return self._open[number]

    def window(self, shard: int, segment: int, start: int, footprint: int, stride: int, reverse: bool) -> NDArray:
        """Tokens of one window: stored tokens `start` … `start + footprint`, every `stride`-th, on one strand.

        Returns (ceil(footprint / stride),) ids in the stored type; reversed, the tokens of the opposite strand
        in its own reading direction.
        """
        ids = self.shard(shard).ids(segment)[start : start + footprint]
        if reverse:
            k = self.manifest.tokenizer.k
            assert k is not None, "only k-mers have a reverse-complement view"
            ids = reverse_complement_ids(ids, k)
        return ids[::stride]

    def place(self, shard: int, segment: int, start: int, footprint: int) -> dict[str, Any]:
        """Where a window lies: `genome`, `contig`, `start` and `end` in bases of the forward strand, half-open."""
        record = self.shard(shard).record(segment)
        k = self.manifest.tokenizer.k or 1
        first = record["start"] + start
        return {"genome": record["genome"], "contig": record["contig"], "start": first, "end": first + footprint + k - 1}
