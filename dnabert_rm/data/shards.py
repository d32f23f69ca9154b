"""Reader of one shard: a tar that holds `KEY.ids.npy` and `KEY.json` for every segment.

Training calls `open_shard`, which checks a shard against its manifest entry once and returns a `ShardFile` for random
access. `data_prep` calls `read_segments` and `read_metas`, which go through a shard in order. All these functions list
the files in the tar with `_members`. Shards are memory-mapped. Nothing is extracted or unpickled.
"""

from __future__ import annotations

import io
import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.manifest import ShardInfo
from dnabert_rm.genome.soft_mask import pack_ranges
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file

ADVICE = "copy or build the shard again"
Meta = dict[str, Any]
"""The JSON member of a segment: `genome, contig, start, end, split`."""

_MEMBER = re.compile(r"([A-Za-z0-9_-]+)\.(ids\.npy|json)")
_META_FIELDS = {"genome": str, "contig": str, "start": int, "end": int, "split": str}
_BLOCK_BYTES = 512
_NPY_PREFIX_BYTES = 10
"""Number of bytes before the header of a `.npy` 1.0 file: magic string, version and header length."""
_PARSE_ERRORS = (ValueError, RecursionError, MemoryError)
"""Exceptions that parsing arbitrary bytes can raise."""


# The tar and the array headers


class _Member(NamedTuple):
    """One file in a shard, which is a tar. Its contents are the bytes `first` … `end - 1` of the shard."""

    name: str
    first: int
    end: int


class _NpyHeader(NamedTuple):
    """Header of a `.npy` file. The array data begin at byte `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


def _map_file(path: Path) -> memoryview:
    with open(path, "rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _members(view: memoryview) -> Iterator[_Member]:
    """Yield the members of a tar, in order. Raise `ValueError` for a member that is truncated or not a plain file.

    Shards are ustar files of regular members with short names. So a member is one block that holds its name and size,
    followed by its contents in whole blocks. The standard `tarfile` takes ten times as long. Extended headers, in which
    some writers store the modification time, are skipped.
    """
    offset = 0
    while offset < len(view) and any(block := bytes(view[offset : offset + _BLOCK_BYTES])):
        name = block[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
        size, kind = block[124:136].strip(b" \0"), block[156:157]
        has_name_prefix = block[345:346] != b"\0"
        is_size_octal = size and not size.strip(b"01234567")
        if block[257:262] != b"ustar" or kind not in (b"0", b"x", b"g") or has_name_prefix or not is_size_octal:
            raise ValueError(f"member {name!r} is not a plain file")
        first = offset + _BLOCK_BYTES
        end = first + int(size, 8)
        if end > len(view):
            raise ValueError(f"member {name!r} is truncated")
        if kind == b"0":
            yield _Member(name, first, end)
        offset = -(-end // _BLOCK_BYTES) * _BLOCK_BYTES


def _npy_header(data: memoryview) -> _NpyHeader:
    """Parse the header of a `.npy` file. Raise one of `_PARSE_ERRORS` if the header is invalid or not version 1.0."""
    header_bytes = int.from_bytes(data[_NPY_PREFIX_BYTES - 2 : _NPY_PREFIX_BYTES], "little")
    return _parse_npy_header(bytes(data[: _NPY_PREFIX_BYTES + header_bytes]))


@lru_cache(maxsize=1024)
def _parse_npy_header(header: bytes) -> _NpyHeader:
    """Parse a header. Results are cached, because parsing is slow and most segments of a shard have equal headers."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"the .npy version is {version}, but only (1, 0) is supported")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return _NpyHeader(shape, dtype, stream.tell())


# Random access, for training


@dataclass(frozen=True)
class ShardIndex:
    """Byte positions of the S segments in a shard.

    `ids` (S,) int64 holds the offset of each segment's first token. `metas` (S, 2) int64 holds the offset and size of
    each segment's JSON member.
    """

    dtype: np.dtype
    ids: NDArray[np.int64]
    metas: NDArray[np.int64]


class ShardFile:
    """Reader of a shard that `open_shard` has checked.

    Callers use `map` and `unmap` to limit the number of memory maps.
    """

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path = path
        self.index = index
        self._words: NDArray | None = None
        self._first_words: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the memory map, which can't be sent to another process."""
        return {**self.__dict__, "_words": None, "_first_words": []}

    @property
    def is_mapped(self) -> bool:
        """Whether the file is memory-mapped. If not, each read opens the file."""
        return self._words is not None

    def map(self) -> None:
        """Memory-map the file. Raise `FileNotFoundError` if the file no longer exists."""
        self._words = np.frombuffer(_map_file(self.path), dtype=self.index.dtype)
        self._first_words = (self.index.ids // self.index.dtype.itemsize).tolist()

    def unmap(self) -> None:
        """Drop this reader's reference to the memory map.

        The map itself is released when no array that `tokens` returned refers to it any more.
        """
        self._words = None
        self._first_words = []

    def tokens(self, segment: int, start: int, stop: int, step: int = 1) -> NDArray:
        """Return every `step`-th of a segment's stored tokens `start` … `stop - 1`, as a read-only array."""
        if self._words is not None:
            first = self._first_words[segment]
            return self._words[first + start : first + stop : step]
        size = self.index.dtype.itemsize
        data = self._read(int(self.index.ids[segment]) + start * size, (stop - start) * size)
        return np.frombuffer(data, dtype=self.index.dtype)[::step]

    def meta(self, segment: int) -> Meta:
        """Return a segment's JSON member: `genome, contig, start, end, split`. Raise `DataError` if it is invalid."""
        try:
            meta = json.loads(self._read(*self.index.metas[segment].tolist()))
            names = {name: str(meta[name]) for name in ("genome", "contig")}
            return {**meta, **names, "start": int(meta["start"]), "end": int(meta["end"])}
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{self.path}: segment {segment} has no valid KEY.json; {ADVICE}") from None

    def soft_mask(self, segment: int, num_bases: int) -> bytes:
        """Return one bit per base of a segment: 1 if the base is soft-masked (`pack_ranges`).

        Raises `DataError` if the segment's JSON member has no valid `soft_masked`.
        """
        meta = self.meta(segment)
        try:
            return pack_ranges(meta["soft_masked"], meta["start"], num_bases)
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{self.path}: segment {segment} has no valid soft_masked in KEY.json; {ADVICE}") from None

    def _read(self, first: int, size: int) -> bytes:
        if self._words is not None:
            return self._words.view(np.uint8)[first : first + size].tobytes()
        with open(self.path, "rb") as stream:
            stream.seek(first)
            return stream.read(size)


def open_shard(path: Path, info: ShardInfo, vocab_size: int) -> ShardFile:
    """Check a shard against its entry in the manifest, and return a reader for the shard.

    Raises `FileNotFoundError`, or a `DataError` that names the shard and the fault.
    """
    try:
        size = path.stat().st_size
        if size != info.bytes:
            raise DataError(f"{path}: has {size} bytes, but the manifest gives {info.bytes}; {ADVICE}")
        if sha256_of_file(path) != info.sha256:
            raise DataError(f"{path}: is damaged (its SHA-256 does not match the manifest); {ADVICE}")
        index, lengths = _index_members(_map_file(path))
        shard = ShardFile(path, index)
        shard.map()
    except FileNotFoundError:
        raise
    except (OSError, *_PARSE_ERRORS) as error:
        raise DataError(f"{path}: can't be read as a shard ({error}); {ADVICE}") from None
    if lengths != info.segments:
        raise DataError(f"{path}: its segments do not match the manifest; {ADVICE}")
    _check_ids(shard, lengths, vocab_size)
    return shard


def _index_members(view: memoryview) -> tuple[ShardIndex, list[int]]:
    """Return a shard's index and the number of tokens per segment. Raise `ValueError` for an unexpected member."""
    ids: list[int] = []
    lengths: list[int] = []
    metas: list[tuple[int, int]] = []
    dtypes: set[np.dtype] = set()
    keys: dict[str, list[str]] = {"ids.npy": [], "json": []}
    for member in _members(view):
        name = _MEMBER.fullmatch(member.name)
        if not name:
            raise ValueError(f"member {member.name!r} is neither KEY.ids.npy nor KEY.json")
        keys[name[2]].append(name[1])
        if name[2] == "json":
            metas.append((member.first, member.end - member.first))
            continue
        header = _id_array_header(member, view)
        ids.append(member.first + header.offset)
        lengths.append(header.shape[0])
        dtypes.add(header.dtype)
    if keys["ids.npy"] != keys["json"] or len(dtypes) != 1:
        raise ValueError("every segment needs KEY.ids.npy and KEY.json, in the same order, with ids of one dtype")
    return ShardIndex(dtypes.pop(), np.array(ids, dtype=np.int64), np.array(metas, dtype=np.int64)), lengths


def _id_array_header(member: _Member, view: memoryview) -> _NpyHeader:
    """Return the header of an id array. Raise `ValueError` unless its ids can be read from the mapped file.

    Only uint16 and uint32 are accepted. So object arrays, which would have to be unpickled, are rejected.
    """
    header = _npy_header(view[member.first : member.end])
    shape, dtype = header.shape, header.dtype
    if len(shape) != 1 or dtype not in (np.uint16, np.uint32):
        raise ValueError(f"{member.name} holds {dtype} of shape {shape}, not 1-D uint16 or uint32")
    if header.offset + shape[0] * dtype.itemsize != member.end - member.first:
        raise ValueError(f"{member.name} is truncated")
    if (member.first + header.offset) % dtype.itemsize:
        raise ValueError(f"{member.name} has misaligned ids")
    return header


def _check_ids(shard: ShardFile, lengths: list[int], vocab_size: int) -> None:
    """Raise `DataError` if an id is outside the vocabulary. On a GPU such an id would abort the process."""
    for segment, length in enumerate(lengths):
        largest = int(shard.tokens(segment, 0, length).max())
        if largest >= vocab_size:
            raise DataError(
                f"{shard.path}: segment {segment} has the id {largest}, but the vocabulary ends at {vocab_size - 1}; "
                f"{ADVICE}"
            )


# Sequential access, for data_prep


def read_segments(path: Path) -> Iterator[tuple[str, Meta, NDArray]]:
    """Yield (key, JSON member, ids) for every segment of a shard, in order.

    Raises `DataError` if members are missing, unexpected or out of order.
    """
    members = _contents(path)
    for name, data in members:
        key, _, kind = name.partition(".")
        if kind != "ids.npy":
            raise DataError(f"{path}: found member {name!r} instead of KEY.ids.npy; build the data again")
        ids = _ids(path, name, data)
        name, data = next(members, ("nothing", memoryview(b"")))
        if name != f"{key}.json":
            raise DataError(
                f"{path}: found member {name!r} after {key}.ids.npy instead of {key}.json; build the data again"
            )
        yield key, _meta(path, name, data), ids


def read_metas(path: Path) -> list[Meta]:
    """Return the JSON members of a shard, in order, without reading its ids."""
    return [_meta(path, name, data) for name, data in _contents(path) if name.endswith(".json")]


def _contents(path: Path) -> Iterator[tuple[str, memoryview]]:
    """Yield the name and contents of each member. The contents are views of the mapped file."""
    try:
        view = _map_file(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a shard ({error}); build the data again") from None
    try:
        for member in _members(view):
            yield member.name, view[member.first : member.end]
    except ValueError as error:
        raise DataError(f"{path}: {error}; build the data again") from None


def _ids(path: Path, name: str, data: memoryview) -> NDArray:
    """Return the array in a `.npy` member as a view. Raise `DataError` unless it holds 1-D unsigned integers."""
    try:
        header = _npy_header(data)
    except _PARSE_ERRORS as error:
        raise DataError(f"{path}: {name} is not a NumPy array ({error}); build the data again") from None
    num_bytes = len(data) - header.offset
    if len(header.shape) != 1 or header.dtype.kind != "u" or num_bytes != header.shape[0] * header.dtype.itemsize:
        raise DataError(f"{path}: {name} is not a 1-D array of unsigned integers; build the data again")
    return np.frombuffer(data, dtype=header.dtype, offset=header.offset)


def _meta(path: Path, name: str, data: memoryview) -> Meta:
    try:
        meta: Meta = json.loads(bytes(data))
        is_valid = all(type(meta[field]) is kind for field, kind in _META_FIELDS.items())
    except (ValueError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise DataError(f"{path}: {name} is not a JSON object with {', '.join(_META_FIELDS)}; build the data again")
    return meta
