"""Reading shards back, segment by segment, without trusting them: for verify, inspect, stats and leakage."""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.errors import DataError

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
