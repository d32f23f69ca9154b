"""Decompress gzip and bgzip inputs once, into a temporary folder.

Each worker of a build reads a different part of an input, but a gzip file can only be read from its start. Therefore
gzip inputs are decompressed first. A bgzip file consists of small gzip blocks of known sizes, so several workers can
decompress one file in parallel.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from data_prep.parallel import run_all
from data_prep.sharding.sources import Source
from dnabert_rm.genome.compression import BGZIP_FIELD, BGZIP_MAGIC, GZIP_MAGIC, GzipStream, warn_no_end_block
from dnabert_rm.genome.fasta_scan import BLOCK_BYTES, first_header
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import progress_bar

_COPY_BYTES = 1 << 20
_PART_BYTES = 1 << 26


@dataclass(frozen=True)
class Part:
    """Part of a compressed file, decompressed by one worker.

    Reading starts at byte `compressed_offset` of `path`, where a gzip block starts. Writing starts at byte
    `output_offset` of `output`. `size` is the number of bytes to write, or None for the whole file.
    """

    path: str
    output: str
    compressed_offset: int = 0
    output_offset: int = 0
    size: int | None = None


def is_gzip(path: str) -> bool:
    """Return whether a file is gzip or bgzip, by its magic number and not by its name."""
    with open(path, "rb") as stream:
        return stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def check_headers(sources: Sequence[Source]) -> None:
    """Raise `DataError` for the first file that does not begin like FASTA. Call this before the slow scan."""
    for source in sources:
        with open(source.path, "rb") as stream:
            if is_gzip(source.path):
                head = io.BufferedReader(GzipStream(stream, source.path), BLOCK_BYTES).read(BLOCK_BYTES)
            else:
                head = stream.read(BLOCK_BYTES)
        first_header(head, source.path)


def decompress_sources(sources: Sequence[Source], scratch: Path, executor: Executor) -> dict[int, str]:
    """Decompress every gzip or bgzip input into the folder `scratch`.

    Return the paths of the decompressed files, keyed by the input's index in `sources`. Files that an earlier run
    decompressed are reused. Raises `DataError` for damaged files.
    """
    outputs = {i: str(scratch / f"source-{i}.fa") for i, source in enumerate(sources) if is_gzip(source.path)}
    temporaries = {i: f"{path}.tmp" for i, path in outputs.items() if not Path(path).exists()}
    parts = [part for i, temporary in temporaries.items() for part in cut_parts(sources[i].path, temporary)]
    for temporary in temporaries.values():
        Path(temporary).touch()
    sizes = [part.size or Path(part.path).stat().st_size for part in parts]
    with progress_bar("decompress", sum(sizes), "base") as bar:
        for index, _ in run_all(executor, decompress_part, parts):
            bar.update(sizes[index])
    for i, temporary in temporaries.items():
        os.replace(temporary, outputs[i])
    return outputs


def cut_parts(path: str, output: str) -> list[Part]:
    """Return parts of a bgzip file that can be decompressed independently, or one part for a plain gzip file."""
    blocks = bgzip_blocks(path)
    if blocks is None:
        return [Part(path, output)]
    parts = []
    compressed_offset = 0
    output_offset = 0
    position = 0
    end_marker = (-1, _PART_BYTES)
    for block_offset, size in [*blocks, end_marker]:
        if position - output_offset >= _PART_BYTES or block_offset < 0:
            parts.append(Part(path, output, compressed_offset, output_offset, position - output_offset))
            compressed_offset = block_offset
            output_offset = position
        position += size
    return parts


def bgzip_blocks(path: str) -> list[tuple[int, int]] | None:
    """Return (offset, uncompressed bytes) of every block of a bgzip file.

    Return None if any part of the file is not a bgzip block, as in a plain gzip file. Such a file can only be read from
    its start. Raises `DataError` if the last block is incomplete.
    """
    blocks: list[tuple[int, int]] = []
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset < len(data):
            if data[offset : offset + 4] != BGZIP_MAGIC or data[offset + 12 : offset + 16] != BGZIP_FIELD:
                return None
            end = offset + int.from_bytes(data[offset + 16 : offset + 18], "little") + 1
            blocks.append((offset, int.from_bytes(data[end - 4 : end], "little")))
            offset = end
        if offset > len(data):
            raise DataError(f"{path}: the gzip data are damaged or end too early; copy or download the file again")
    if blocks[-1][1]:
        warn_no_end_block(path)
    return blocks


def decompress_part(part: Part) -> None:
    """Decompress one part into the output file. Raises `DataError` if the data are damaged or end too early."""
    num_bytes = 0
    with open(part.path, "rb") as stream, open(part.output, "r+b") as out:
        stream.seek(part.compressed_offset)
        out.seek(part.output_offset)
        content = io.BufferedReader(GzipStream(stream, part.path, part.size), _COPY_BYTES)
        while block := content.read(_COPY_BYTES):
            out.write(block)
            num_bytes += len(block)
    if part.size not in (None, num_bytes):
        raise DataError(f"{part.path}: the gzip data are damaged or end too early; copy or download the file again")
