"""Gzip and bgzip inputs, decompressed once with htslib (pysam) into the scratch folder.

Gzip can only be read from its start, and the build reads every part of a file twice, on every
worker. Bgzip is gzip in small blocks of known sizes, so that workers share the decompression.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.parallel import run_all
from data_prep.build.sources import Source
from dnabert_rm.utils.errors import DataError
from dnabert_rm.genome.fasta_scan import BLOCK_BYTES, first_header
from dnabert_rm.utils.progress import progress_bar

_GZIP_MAGIC = b"\x1f\x8b"
_BGZIP_MAGIC, _BGZIP_FIELD = b"\x1f\x8b\x08\x04", b"BC\x02\x00"
_COPY_BYTES = 1 << 20
_PART_BYTES = 1 << 26


@dataclass(frozen=True)
class Part:
    """What one task decompresses: from the compressed offset `begin`, `size` bytes (None: all), to `start`."""

    path: str
    plain: str
    begin: int = 0
    start: int = 0
    size: int | None = None


def is_gzip(path: str) -> bool:
    """Whether a file begins as gzip and bgzip do, whatever its name."""
    with open(path, "rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


def check_starts(sources: Sequence[Source]) -> None:
    """Raise `DataError` for the first file that does not begin like FASTA, before any long work is done on it."""
    for source in sources:
        try:
            with _open_packed(source.path) if is_gzip(source.path) else open(source.path, "rb") as stream:
                head = stream.read(BLOCK_BYTES)
        except OSError as error:
            if error.errno:
                raise
            continue  # Damaged gzip data, told when they are decompressed.
        first_header(head, source.path)


def _open_packed(path: str) -> Any:
    """htslib's reader of gzip and bgzip files, which raises OSError without a number for damaged data."""
    import pysam

    # Its own messages would stand beside ours.
    pysam.set_verbosity(0)
    return pysam.BGZFile(path, "rb", None)


def uncompressed(sources: Sequence[Source], scratch: Path, executor: Executor) -> dict[int, str]:
    """The uncompressed bytes of every gzip or bgzip source, made in `scratch`: the source's number → path.

    What an earlier run has finished is taken as it is. Raises `DataError` for damaged files.
    """
    made = {i: str(scratch / f"source-{i}.fa") for i, source in enumerate(sources) if is_gzip(source.path)}
    missing = {i: f"{path}.tmp" for i, path in made.items() if not Path(path).exists()}
    parts = [part for i, aside in missing.items() for part in cut_parts(sources[i].path, aside)]
    for aside in missing.values():
        Path(aside).touch()
    sizes = [part.size or Path(part.path).stat().st_size for part in parts]
    with progress_bar("unpack", sum(sizes), "base") as bar:
        for index, _ in run_all(executor, unpack_part, parts):
            bar.update(sizes[index])
    for i, aside in missing.items():
        os.replace(aside, made[i])
    return made


def cut_parts(path: str, plain: str) -> list[Part]:
    """Parts of a bgzip file that can be decompressed apart, or one part for a plain gzip file."""
    blocks = bgzip_blocks(path)
    if blocks is None:
        return [Part(path, plain)]
    parts, start, begin, first = [], 0, 0, 0
    for offset, size in [*blocks, (-1, _PART_BYTES)]:
        if start - first >= _PART_BYTES or offset < 0:
            parts.append(Part(path, plain, begin, first, start - first))
            begin, first = offset, start
        start += size
    return parts


def bgzip_blocks(path: str) -> list[tuple[int, int]] | None:
    """(offset, uncompressed bytes) of every block of a bgzip file; None where it is plain gzip.

    Raises `DataError` where the last block, which is empty in a whole file, is missing.
    """
    blocks: list[tuple[int, int]] = []
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset < len(data):
            if data[offset : offset + 4] != _BGZIP_MAGIC or data[offset + 12 : offset + 16] != _BGZIP_FIELD:
                # Gzip, or a mixture of both, which can be read from its start only.
                return None
            end = offset + int.from_bytes(data[offset + 16 : offset + 18], "little") + 1
            blocks.append((offset, int.from_bytes(data[end - 4 : end], "little")))
            offset = end
        if offset > len(data) or blocks[-1][1] != 0:
            raise DataError(f"{path}: the bgzip data end too early; copy or download the file again")
    return blocks


def unpack_part(part: Part) -> None:
    """Decompress one part into its place; `DataError` where the data are damaged or cut short."""
    left = part.size
    with open(part.plain, "r+b") as out:
        out.seek(part.start)
        try:
            with _open_packed(part.path) as stream:
                if part.begin:
                    # A virtual offset: that of the block, and 0 bytes into it.
                    stream.seek(part.begin << 16)
                while left != 0 and (block := stream.read(_COPY_BYTES if left is None else min(left, _COPY_BYTES))):
                    out.write(block)
                    left = None if left is None else left - len(block)
        except OSError as error:
            if error.errno:
                raise
            left = -1
    if left:
        raise DataError(f"{part.path}: the gzip data are damaged or end too early; copy or download the file again")
