"""Streaming sequence input: read FASTA or tables and cut long sequences into windows, in bounded memory.

A *region* is a record, or one tile of a record, and gets one result. A *window* is one model input.
Base positions are 0-based from the start of the record; ranges are half-open.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_stream import NUCLEOTIDES, Input, fasta_records, letter_fault
from dnabert_rm.tokenizer.windows import middle, windows
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import explain_full_temporary_folder

SEQUENCE_COLUMN = "sequence"
ID_COLUMN = "id"
LONG = ("window", "middle")
_SPOOLED_BYTES = 1 << 22
"""Records above this size go to a temporary file with `--long middle`, until their end is known."""

Records = Iterator[tuple[str, Iterator[bytes]]]
"""Each record's name and its sequence in blocks. Consume the blocks before asking for the next record."""


@dataclass
class Region:
    """Part of a record that gets one result: bases `start` … `end` - 1. `end` is 0 until the last window is cut.

    `strand` is "-" if the sequence is the reverse complement of these bases.
    """

    name: str
    start: int = 0
    end: int = 0
    strand: str = "+"
    label: str = ""
    """Name of the interval, if the region is one."""

    def cells(self, columns: list[str]) -> list[str | int]:
        """Return the values of `InferenceSettings.region_columns`."""
        values: dict[str, str | int] = {
            "id": self.name,
            "contig": self.name,
            "start": self.start,
            "end": self.end,
            "strand": self.strand,
            "name": self.label,
        }
        return [values[column] for column in columns]


@dataclass(frozen=True)
class Window:
    """One model input. `sequence` starts at base `start` of the record and ends with the window's last token."""

    region: Region
    sequence: bytes
    start: int
    is_last: bool
    first_token: int
    """Index of the window's first token in the region."""
    num_tokens: int


@dataclass(frozen=True)
class Tokenization:
    """Rules for cutting a sequence into k-mers."""

    k: int
    stride: int
    """Bases from one k-mer's start to the next."""
    max_kmers: int
    """K-mers per window, without special tokens."""

    def num_kmers(self, num_bases: int) -> int:
        """Return the number of k-mers in `num_bases` bases."""
        return max(0, (num_bases - self.k) // self.stride + 1)

    def num_bases(self, num_kmers: int) -> int:
        """Return the number of bases that `num_kmers` k-mers cover."""
        return (num_kmers - 1) * self.stride + self.k if num_kmers else 0


@dataclass(frozen=True)
class BpeTokenization:
    """Rules for cutting a sequence between BPE tokens.

    The whole sequence or tile is held in memory and tokenized. Windows are cut between two tokens, so that a window
    encoded alone has the same tokens as in the whole sequence. In per-base predictions, each base has its own output,
    so `k` and `stride` are 1.
    """

    token_ranges: Callable[[str], NDArray[np.int64]]
    """Function from a sequence to the half-open range of bases that each token covers, (T, 2)."""
    max_kmers: int
    """Tokens per window, without special tokens."""
    k: int = 1
    stride: int = 1


AnyTokenization = Tokenization | BpeTokenization


# ---- reading


def read_records(source: Input, id_column: str | None = None) -> Records:
    """Return the records of a FASTA file, or the rows of a CSV or TSV table with the column `sequence`.

    A row's name comes from the column `id_column`, by default `id`. If `id_column` is None and the table has no column
    `id`, rows are numbered from 1. Raises `DataError` if a line can't be read; the message has the line number. Raises
    `ConfigError` if `id_column` is given for FASTA.
    """
    lines = source.lines()
    number = 0
    for line in lines:
        number += 1
        if line.removeprefix(b"\xef\xbb\xbf").strip():
            break
    else:
        raise DataError(f"{source.display_name}: is empty; pass FASTA, or a table with the column {SEQUENCE_COLUMN}")
    if (header := line.removeprefix(b"\xef\xbb\xbf").lstrip()).startswith(b">"):
        if id_column is not None:
            raise ConfigError(f"--id-column {id_column}: {source.display_name} is FASTA, without columns; omit it")
        return fasta_records(itertools.chain([header], lines), source.display_name, number)
    if line.startswith(b"@"):
        raise DataError(f"{source.display_name}, line {number}: starts with '@' like FASTQ; convert it to FASTA first")
    return _table_records(itertools.chain([line], lines), source.display_name, number - 1, id_column)


def _table_records(lines: Iterable[bytes], display_name: str, lines_before: int, id_column: str | None) -> Records:
    """Yield the rows of a table whose header follows `lines_before` blank lines."""
    csv.field_size_limit(sys.maxsize)  # the default is 131,072 characters per field
    texts = _decoded_lines(lines, display_name)
    header = next(texts)
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    where = f"{display_name}:{lines_before + 1}"
    sequence_index = _column_index(where, names, SEQUENCE_COLUMN)
    has_id = any(name.lower() == ID_COLUMN for name in names)
    id_index = _column_index(where, names, id_column or ID_COLUMN) if id_column or has_id else None
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    row_numbers = itertools.count(1)
    try:
        for fields in reader:
            where = f"{display_name}:{lines_before + 1 + reader.line_num}"
            if not fields or fields == [""]:
                continue
            if len(fields) != len(names):
                raise DataError(f"{where}: has {len(fields)} columns where the header has {len(names)}; fix the row")
            sequence = _checked_sequence(fields[sequence_index].strip(), where)
            row_number = next(row_numbers)
            yield str(row_number) if id_index is None else fields[id_index], iter([sequence])
    except csv.Error as error:
        raise DataError(
            f"{display_name}:{lines_before + 1 + reader.line_num}: not a valid row ({error}); fix the row"
        ) from None


def _decoded_lines(lines: Iterable[bytes], display_name: str) -> Iterator[str]:
    """Yield whole lines as text. `Input.lines` returns a very long line in parts, which are joined here."""
    pieces: list[bytes] = []
    for line in itertools.chain(lines, [b""]):
        pieces.append(line)
        if line.endswith(b"\n") or not line:
            try:
                text = b"".join(pieces).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise DataError(
                    f"{display_name}: not a text file; pass FASTA, or a CSV or TSV table in UTF-8"
                ) from None
            if text:
                yield text
            pieces = []


def _column_index(where: str, names: list[str], wanted: str) -> int:
    found = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(found) != 1:
        listed = ", ".join(repr(name if len(name) <= 20 else name[:20] + "…") for name in names[:6])
        what = f"{len(found)} columns" if found else "no column"
        raise DataError(
            f"{where}: {what} {wanted!r} (found: {listed}), and the input is not FASTA;"
            f" pass FASTA, or a table with one column {wanted!r}"
        )
    return found[0]


def _checked_sequence(text: str, where: str) -> bytes:
    if not text:
        raise DataError(f"{where}: the sequence is empty; fill in the sequence or remove the row")
    sequence = text.encode("utf-8")
    if wrong := sequence.translate(None, NUCLEOTIDES):
        raise DataError(f"{where}: {letter_fault(wrong[0])}")
    return sequence


# ---- cutting


def regions(
    records: Records, tile: int | None = None, step: int | None = None
) -> Iterator[tuple[Region, Iterator[bytes]]]:
    """Yield the regions of each record. A region gets one result.

    Without `tile`, a region is the whole record. With `tile`, a region is a tile of `tile` bases. Tiles start `step`
    bases apart, and `step` defaults to `tile`. The last tile of a record may be shorter, and is omitted if the previous
    tile already contains all its bases.
    """
    for name, blocks in records:
        if tile is None:
            yield Region(name), blocks
        else:
            for start, sequence in _tiles(blocks, tile, step or tile):
                yield Region(name, start), iter([sequence])


def _tiles(blocks: Iterable[bytes], size: int, step: int) -> Iterator[tuple[int, bytes]]:
    buffer = bytearray()
    buffer_start = 0
    start = 0
    for block in blocks:
        buffer += block
        while buffer_start + len(buffer) >= start + size:
            yield start, bytes(buffer[start - buffer_start : start - buffer_start + size])
            start += step
        consumed = min(len(buffer), max(0, start - buffer_start))
        del buffer[:consumed]
        buffer_start += consumed
    total = buffer_start + len(buffer)
    if start == 0 or start - step + size < total > start:
        yield start, bytes(buffer[start - buffer_start :])


def cut_windows(region: Region, blocks: Iterator[bytes], tokenization: AnyTokenization, long: str) -> Iterator[Window]:
    """Yield the windows (model inputs) of a region, which is a whole record or one tile.

    If a region has too many tokens for one window, `long` selects overlapping windows ("window") or only one window in
    the middle ("middle"). Overlapping windows start half a window apart, as in `tokenizer.windows.windows`. A region
    shorter than one k-mer gives one window with an empty sequence.
    """
    if isinstance(tokenization, BpeTokenization):
        return _windows_between_tokens(region, b"".join(blocks), tokenization, long)
    cut = _overlapping_windows if long == "window" else _middle_window
    return cut(region, blocks, tokenization)


def _overlapping_windows(region: Region, blocks: Iterator[bytes], tokenization: Tokenization) -> Iterator[Window]:
    max_kmers = tokenization.max_kmers
    window_stride = max(1, max_kmers // 2)
    buffer = bytearray()
    buffer_start = 0
    total = 0
    next_kmer = 0

    def window(first_kmer: int, num_kmers: int, is_last: bool) -> Window:
        start = first_kmer * tokenization.stride
        offset = start - buffer_start
        sequence = bytes(buffer[offset : offset + tokenization.num_bases(num_kmers)])
        return Window(region, sequence, region.start + start, is_last, first_kmer, num_kmers)

    for block in blocks:
        buffer += block
        total += len(block)
        while next_kmer + max_kmers < tokenization.num_kmers(total):
            yield window(next_kmer, max_kmers, False)
            next_kmer += window_stride
        # The last window may start before the next regular window would.
        kept_from = min(next_kmer, max(0, tokenization.num_kmers(total) - max_kmers)) * tokenization.stride
        del buffer[: kept_from - buffer_start]
        buffer_start = kept_from
    region.end = region.start + total
    num_kmers = tokenization.num_kmers(total)
    yield window(max(0, num_kmers - max_kmers), min(max_kmers, num_kmers), True)


def _middle_window(region: Region, blocks: Iterator[bytes], tokenization: Tokenization) -> Iterator[Window]:
    """Yield the middle window of a region.

    The middle is unknown until the region is read to its end, so a long region is copied to a temporary file.
    """
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spool:
        for block in blocks:
            with explain_full_temporary_folder():
                spool.write(block)
        total = spool.tell()
        num_kmers = tokenization.num_kmers(total)
        window = middle(num_kmers, tokenization.max_kmers)
        start = window.start * tokenization.stride
        spool.seek(start)
        sequence = spool.read(tokenization.num_bases(len(window)))
    region.end = region.start + total
    yield Window(region, sequence, region.start + start, True, window.start, len(window))


def _windows_between_tokens(
    region: Region, sequence: bytes, tokenization: BpeTokenization, long: str
) -> Iterator[Window]:
    """Yield the windows of a region (a whole record or one tile), cut between BPE tokens."""
    region.end = region.start + len(sequence)
    token_ranges = tokenization.token_ranges(sequence.decode("ascii"))
    num_tokens = len(token_ranges)
    cut = (
        list(windows(num_tokens, tokenization.max_kmers))
        if long == "window"
        else [middle(num_tokens, tokenization.max_kmers)]
    )
    for window in cut:
        start, end = (token_ranges[window.start, 0], token_ranges[window.stop - 1, 1]) if num_tokens else (0, 0)
        part = sequence[start:end]
        yield Window(region, part, region.start + int(start), window is cut[-1], window.start, len(window))
