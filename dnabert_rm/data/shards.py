"""One shard on disk: checked and indexed once, its segments then read in place.

Nothing is unpacked and nothing is unpickled: the tar's and the arrays' headers say where the ids lie.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.manifest import ShardInfo
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file

_MEMBER = re.compile(r"([A-Za-z0-9_-]+)\.(ids\.npy|json)")
_HEADER_BYTES = 4096
MEND = "copy or build the shard again"


@dataclass(frozen=True)
class ShardIndex:
    """Where the segments of a shard lie, in bytes: `ids` (S,) int64, `records` (S, 2) int64 of offset and size."""

    dtype: np.dtype
    ids: NDArray[np.int64]
    records: NDArray[np.int64]


class ShardFile:
    """A shard that was checked; `map` and `unmap` bound what the process holds of it."""

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path, self.index = path, index
        self._words: NDArray | None = None
        self._firsts: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        """Maps don't travel to other processes."""
        return {**self.__dict__, "_words": None, "_firsts": []}

    @property
    def is_mapped(self) -> bool:
        """Whether the file is mapped; if not, each read opens it."""
        return self._words is not None

    def map(self) -> None:
        """Map the file; `FileNotFoundError` where it has gone."""
        self._words = _mapped(self.path).view(self.index.dtype)
        self._firsts = (self.index.ids // self.index.dtype.itemsize).tolist()

    def unmap(self) -> None:
        """Give the map back as soon as no window refers to it."""
        self._words, self._firsts = None, []

    def tokens(self, segment: int, start: int, stop: int, step: int = 1) -> NDArray:
        """Every `step`-th of the stored tokens `start` … `stop - 1` of a segment, read-only."""
        if self._words is not None:
            first = self._firsts[segment]
            return self._words[first + start : first + stop : step]
        size = self.index.dtype.itemsize
        data = self._read(int(self.index.ids[segment]) + start * size, (stop - start) * size)
        return np.frombuffer(data, dtype=self.index.dtype)[::step]

    def record(self, segment: int) -> dict[str, Any]:
        """Where a segment comes from: `genome, contig, start, end, split`; `DataError` where that is missing."""
        try:
            record = json.loads(self._read(*self.index.records[segment].tolist()))
            names = {name: str(record[name]) for name in ("genome", "contig")}
            return {**record, **names, "start": int(record["start"]), "end": int(record["end"])}
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{self.path}: segment {segment} has no proper KEY.json; {MEND}") from None

    def _read(self, first: int, size: int) -> bytes:
        with open(self.path, "rb") as stream:
            stream.seek(first)
            return stream.read(size)


def open_shard(path: Path, info: ShardInfo, vocab_size: int) -> ShardFile:
    """Check and index one shard against its manifest entry.

    Raises `FileNotFoundError`, or `DataError` that names the shard and what is wrong with it.
    """
    try:
        size = path.stat().st_size
        if size != info.bytes:
            raise DataError(f"{path}: has {size} bytes, the manifest says {info.bytes}; {MEND}")
        if sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: is damaged (its SHA-256 is not the manifest's); {MEND}")
        index, lengths = _index(path, _mapped(path))
        shard = ShardFile(path, index)
        shard.map()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError, tarfile.TarError) as error:
        raise DataError(f"{path}: can't be read as a shard ({error}); {MEND}") from None
    if lengths != info.segments:
        raise DataError(f"{path}: its segments are not those of the manifest; {MEND}")
    _check_ids(shard, lengths, vocab_size)
    return shard


def _check_ids(shard: ShardFile, lengths: list[int], vocab_size: int) -> None:
    """`DataError` where a segment has an id that the model has no embedding for: on a GPU that ends the process."""
    for segment, length in enumerate(lengths):
        largest = int(shard.tokens(segment, 0, length).max())
        if largest >= vocab_size:
            raise DataError(
                f"{shard.path}: segment {segment} has the id {largest}, the vocabulary ends at {vocab_size - 1}; {MEND}"
            )


def _mapped(path: Path) -> NDArray[np.uint8]:
    with open(path, "rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _index(path: Path, data: NDArray[np.uint8]) -> tuple[ShardIndex, list[int]]:
    """Find every member of the tar; ValueError or TarError where something is not as it should be."""
    ids, lengths, records = [], [], []
    dtypes: set[np.dtype] = set()
    keys: dict[str, list[str]] = {"ids.npy": [], "json": []}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = _MEMBER.fullmatch(member.name)
            if not name or not member.isreg():
                raise ValueError(f"member {member.name!r} is no plain KEY.ids.npy or KEY.json")
            if member.offset_data + member.size > len(data):
                raise ValueError(f"member {member.name!r} is cut short")
            keys[name[2]].append(name[1])
            if name[2] == "json":
                records.append((member.offset_data, member.size))
                continue
            header_bytes, length, dtype = _array_header(member, data)
            ids.append(member.offset_data + header_bytes)
            lengths.append(length)
            dtypes.add(dtype)
    if keys["ids.npy"] != keys["json"] or len(dtypes) != 1:
        raise ValueError("every segment needs one KEY.ids.npy, all of one type, and one KEY.json, in one order")
    return ShardIndex(dtypes.pop(), np.array(ids, dtype=np.int64), np.array(records, dtype=np.int64)), lengths


def _array_header(member: tarfile.TarInfo, data: NDArray[np.uint8]) -> tuple[int, int, np.dtype]:
    """Bytes of an array's header, its length and type; an object array (a pickle) is refused by its type alone."""
    start = member.offset_data
    header = io.BytesIO(data[start : start + min(member.size, _HEADER_BYTES)].tobytes())
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"{member.name} has .npy version {version}, not (1, 0)")
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    if len(shape) != 1 or dtype not in (np.uint16, np.uint32):
        raise ValueError(f"{member.name} holds {dtype} of shape {shape}, not 1-D uint16 or uint32")
    if header.tell() + shape[0] * dtype.itemsize != member.size:
        raise ValueError(f"{member.name} is cut short")
    if (start + header.tell()) % dtype.itemsize:
        raise ValueError(f"{member.name} has ids that are not aligned")
    return header.tell(), shape[0], dtype


Meta = dict[str, Any]
"""The JSON member of a segment."""
_BLOCK_BYTES = 512
_FIELDS = {"genome": str, "contig": str, "start": int, "end": int, "split": str}


def read_segments(path: Path) -> Iterator[tuple[str, Meta, NDArray]]:
    """(key, JSON member, ids) of every segment of a shard, in order.

    Raises `DataError` where members are missing, of another kind, or out of order.
    """
    members = _members(path)
    for name, data in members:
        key, _, kind = name.partition(".")
        if kind != "ids.npy":
            raise DataError(f"{path}: member {name!r}, but KEY.ids.npy is expected")
        ids = _ids(path, name, data)
        name, data = next(members, ("nothing", memoryview(b"")))
        if name != f"{key}.json":
            raise DataError(f"{path}: member {name!r} follows {key}.ids.npy, but {key}.json is expected")
        yield key, _meta(path, name, data), ids


def read_metas(path: Path) -> list[Meta]:
    """The JSON members of a shard, in order, without reading its ids."""
    return [_meta(path, name, data) for name, data in _members(path, ".json")]


def _members(path: Path, ending: str = "") -> Iterator[tuple[str, memoryview]]:
    """Names and contents of the members whose names have this ending; the contents are views of the file.

    Shards are plain ustar files of regular members with short names, so a member is a block that
    holds its name and size, and its content in whole blocks; tarfile takes ten times as long.
    """
    try:
        with open(path, "rb") as stream:
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a shard ({error}); build the data again") from None
    offset = 0
    while offset < len(view) and any(block := bytes(view[offset : offset + _BLOCK_BYTES])):
        name = block[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
        size = block[124:136].strip(b" \0")
        start = offset + _BLOCK_BYTES
        if (
            block[257:262] != b"ustar"
            or block[156:157] != b"0"
            or block[345:346] != b"\0"
            or not size
            or size.strip(b"01234567")
        ):
            raise DataError(f"{path}: member {name!r} is no plain file of a shard; build the data again")
        end = start + int(size, 8)
        if end > len(view):
            raise DataError(f"{path}: member {name!r} is cut short; build the data again")
        if name.endswith(ending):
            yield name, view[start:end]
        offset = -(-end // _BLOCK_BYTES) * _BLOCK_BYTES


def _ids(path: Path, name: str, data: memoryview) -> NDArray:
    """The array in a `.npy` member, without a copy; only plain 1-D integers are taken, so no pickle is."""
    try:
        length, dtype, offset = _npy_header(bytes(data[: 10 + int.from_bytes(data[8:10], "little")]))
    except ValueError as error:
        raise DataError(f"{path}: {name} is no NumPy array ({error})") from None
    if length is None or dtype.kind != "u" or len(data) - offset != length * dtype.itemsize:
        raise DataError(f"{path}: {name} is no 1-D array of unsigned integers")
    return np.frombuffer(data, dtype=dtype, offset=offset)


@lru_cache(maxsize=1024)
def _npy_header(head: bytes) -> tuple[int | None, np.dtype, int]:
    """Length (None unless 1-D), type, and where the numbers begin, of the header of a `.npy` file."""
    stream = io.BytesIO(head)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return (shape[0] if len(shape) == 1 else None), dtype, stream.tell()


def _meta(path: Path, name: str, data: memoryview) -> Meta:
    try:
        meta: Meta = json.loads(bytes(data))
        good = all(type(meta[field]) is kind for field, kind in _FIELDS.items())
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise DataError(f"{path}: {name} is no object with {', '.join(_FIELDS)}")
    return meta
