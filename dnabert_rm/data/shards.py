"""Reader of one shard: a tar of pairs of members, `KEY.ids.npy` and `KEY.json`, with one or several segments each.

Training calls `open_shard`, which checks a shard against its manifest entry once and returns a `ShardFile` for random
access. `data_prep` calls `read_segments` and `read_metas`, which go through a shard in order. All these functions list
the files in the tar with `_members`. Shards are memory-mapped. Nothing is extracted or unpickled.
"""

from __future__ import annotations

import io
import json
import mmap
import re
from collections.abc import Iterator, Sequence
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
"""Coordinates of a segment: `genome, contig, start, end, split`, and `strand` and `soft_masked` if they are stored."""

_MEMBER = re.compile(r"([A-Za-z0-9_-]+)\.(ids\.npy|json)")
_SHARED_FIELDS = ("genome", "split")  # one value for all segments of a JSON member
_META_FIELDS = {"genome": str, "contig": str, "start": int, "end": int, "split": str, "tokens": int}
_VERSION_1 = {"tokens": 0}  # values of fields that format version 1 doesn't have
_BLOCK_BYTES = 512
_NPY_PREFIX_BYTES = 10
"""Number of bytes before the header of a `.npy` 1.0 file: magic string, version and header length."""
_PARSE_ERRORS = (ValueError, RecursionError, MemoryError)
"""Exceptions that parsing arbitrary bytes can raise."""
_META_ERRORS = (ValueError, TypeError, KeyError, OverflowError, RecursionError)  # for an invalid JSON member


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
    """Byte positions of the S segments in a shard, which are stored in M pairs of members.

    `ids` (S,) int64 holds the offset of each segment's first token. `metas` (M, 2) int64 holds the offset and size of
    each JSON member, and `first_segments` (M,) int64 the index of its first segment.
    """

    dtype: np.dtype
    ids: NDArray[np.int64]
    metas: NDArray[np.int64]
    first_segments: NDArray[np.int64]


class ShardFile:
    """Reader of a shard that `open_shard` has checked.

    Callers use `map` and `unmap` to limit the number of memory maps.
    """

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path = path
        self.index = index
        self._words: NDArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the memory map, which can't be sent to another process."""
        return {**self.__dict__, "_words": None}

    @property
    def is_mapped(self) -> bool:
        """Whether the file is memory-mapped. If not, each read opens the file."""
        return self._words is not None

    def map(self) -> None:
        """Memory-map the file. Raise `FileNotFoundError` if the file no longer exists."""
        self._words = np.frombuffer(_map_file(self.path), dtype=self.index.dtype)

    def unmap(self) -> None:
        """Drop this reader's reference to the memory map.

        The map itself is released when no array that `tokens` returned refers to it any more.
        """
        self._words = None

    def tokens(self, segment: int, start: int, stop: int, step: int = 1) -> NDArray:
        """Return every `step`-th of a segment's stored tokens `start` … `stop - 1`, as a read-only array."""
        offset, size = int(self.index.ids[segment]), self.index.dtype.itemsize
        if self._words is not None:
            first = offset // size
            return self._words[first + start : first + stop : step]
        data = self._read(offset + start * size, (stop - start) * size)
        return np.frombuffer(data, dtype=self.index.dtype)[::step]

    def meta(self, segment: int) -> Meta:
        """Return a segment's coordinates. Raise `DataError` if its JSON member is invalid."""
        metas, first = self._metas(segment)
        return metas[segment - first]

    def soft_masks(self, segment: int, num_bases: Sequence[int]) -> dict[int, bytes]:
        """Return the soft masks of a segment and of those that share its JSON member, keyed by segment index.

        A mask has one bit per base: 1 if the base is soft-masked (`pack_ranges`). `num_bases` holds the number of bases
        of every segment in the shard. Raises `DataError` if a segment has no valid `soft_masked`.
        """
        metas, first = self._metas(segment)
        masks = {}
        for number, meta in enumerate(metas, first):
            try:
                masks[number] = pack_ranges(meta["soft_masked"], meta["start"], int(num_bases[number]))
            except (ValueError, TypeError, KeyError, OverflowError):
                raise DataError(
                    f"{self.path}: segment {number} has no valid soft_masked in KEY.json; {ADVICE}"
                ) from None
        return masks

    def _metas(self, segment: int) -> tuple[list[Meta], int]:
        """Return the coordinates of all segments in a segment's JSON member, and the index of the first of them."""
        first_segments = self.index.first_segments
        member = int(np.searchsorted(first_segments, segment, side="right")) - 1
        first = int(first_segments[member])
        end = int(first_segments[member + 1]) if member + 1 < len(first_segments) else len(self.index.ids)
        try:
            metas = _metas_of(json.loads(self._read(*self.index.metas[member].tolist())))
            if len(metas) != end - first:
                raise ValueError
            for meta in metas:
                meta.update({name: str(meta[name]) for name in ("genome", "contig")})
                meta.update({name: int(meta[name]) for name in ("start", "end")})
            return metas, first
        except _META_ERRORS:
            raise DataError(f"{self.path}: segment {segment} has no valid KEY.json; {ADVICE}") from None

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
        index = _index_members(_map_file(path), info.segments)
        shard = ShardFile(path, index)
        shard.map()
    except FileNotFoundError:
        raise
    except (OSError, *_PARSE_ERRORS) as error:
        raise DataError(f"{path}: can't be read as a shard ({error}); {ADVICE}") from None
    _check_ids(shard, info.segments, vocab_size)
    return shard


def _index_members(view: memoryview, segments: NDArray[np.int64]) -> ShardIndex:
    """Return a shard's index. Raise `ValueError` for an unexpected member, or if the ids are not those of the manifest.

    `segments` (S,) holds the number of tokens in each segment.
    """
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
        raise ValueError("KEY.ids.npy and KEY.json must come in pairs, in the same order, with ids of one dtype")
    dtype = dtypes.pop()
    # A member holds whole segments, so its end is the end of a segment.
    ends, member_ends = np.cumsum(segments), np.cumsum(lengths)
    last_segments = np.searchsorted(ends, member_ends)
    is_same = len(segments) > 0 and min(lengths) > 0 and member_ends[-1] == ends[-1]
    if not is_same or (ends[last_segments] != member_ends).any():
        raise ValueError("its segments do not match the manifest")
    first_segments = np.concatenate([[0], last_segments[:-1] + 1])
    member_of = np.repeat(np.arange(len(lengths)), np.diff(np.append(first_segments, len(segments))))
    starts = ends - segments
    offsets = np.array(ids)[member_of] + (starts - starts[first_segments][member_of]) * dtype.itemsize
    return ShardIndex(dtype, offsets, np.array(metas, dtype=np.int64), first_segments)


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


def _check_ids(shard: ShardFile, lengths: NDArray[np.int64], vocab_size: int) -> None:
    """Raise `DataError` if an id is outside the vocabulary. On a GPU such an id would abort the process."""
    members = shard.index.first_segments
    for first, num_tokens in zip(members.tolist(), np.add.reduceat(lengths, members).tolist(), strict=True):
        is_unknown = shard.tokens(first, 0, num_tokens) >= vocab_size
        if is_unknown.any():
            position = int(is_unknown.argmax())
            segment = first + int(np.searchsorted(np.cumsum(lengths[first:]), position, side="right"))
            raise DataError(
                f"{shard.path}: segment {segment} has the id {shard.tokens(first, position, position + 1)[0]}, but the "
                f"vocabulary ends at {vocab_size - 1}; {ADVICE}"
            )


# Sequential access, for data_prep


def read_segments(path: Path) -> Iterator[tuple[str, Meta, NDArray]]:
    """Yield (key, coordinates, ids) for every segment of a shard, in order. The key is its number in the folder.

    Raises `DataError` if members are missing, unexpected or out of order.
    """
    for key, metas, ids, lengths in read_members(path):
        start = 0
        for number, (meta, length) in enumerate(zip(metas, lengths, strict=True)):
            yield (f"{int(key) + number:07d}" if number else key), meta, ids[start : start + length]
            start += length


def read_members(path: Path) -> Iterator[tuple[str, list[Meta], NDArray, list[int]]]:
    """Yield (key, coordinates of the segments, ids, numbers of tokens) for every pair of members, in order.

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
        metas = _checked_metas(path, name, data)
        lengths = [meta.get("tokens", len(ids)) for meta in metas]
        if sum(lengths) != len(ids) or (len(lengths) > 1 and not key.isdecimal()):
            raise DataError(
                f"{path}: {name} gives {sum(lengths)} tokens, but {key}.ids.npy has {len(ids)}; build the data again"
            )
        yield key, metas, ids, lengths


def read_metas(path: Path) -> list[Meta]:
    """Return the coordinates of a shard's segments, in order, without reading its ids."""
    found = (_checked_metas(path, name, data) for name, data in _contents(path) if name.endswith(".json"))
    return [meta for metas in found for meta in metas]


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


def _checked_metas(path: Path, name: str, data: memoryview) -> list[Meta]:
    try:
        metas = _metas_of(json.loads(bytes(data)))
        values = ((meta.get(name, _VERSION_1.get(name)), kind) for meta in metas for name, kind in _META_FIELDS.items())
        has_types = bool(metas) and all(type(value) is kind for value, kind in values)
        is_valid = has_types and all(0 <= meta["start"] <= meta["end"] < 1 << 62 for meta in metas)
    except _META_ERRORS:
        is_valid = False
    if not is_valid:
        raise DataError(
            f"{path}: {name} is not a JSON object with genome, contig, start, end, split; build the data again"
        )
    return metas


def _metas_of(content: Any) -> list[Meta]:
    """Return the coordinates of the segments in the content of a JSON member. Raise one of `_META_ERRORS` if invalid.

    In format version 1, the fields are those of one segment. In version 2, all but `_SHARED_FIELDS` are lists, with one
    value per segment.
    """
    if not isinstance(content["start"], list):
        return [content]
    shared = {name: content[name] for name in _SHARED_FIELDS}
    names = [name for name in content if name not in shared]
    rows = zip(*(content[name] for name in names), strict=True)
    return [{**shared, **dict(zip(names, row, strict=True))} for row in rows]
