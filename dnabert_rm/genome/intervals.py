"""Read intervals from BED files, and combine sets of ranges. `annotation.py` also reads GFF and GTF.

BED positions are 0-based and half-open, like all positions in this code base. The format is that of the BED
specification 1.0 (samtools.github.io/hts-specs/BEDv1.pdf). UCSC's `track` and `browser` lines are allowed too.
ENCODE's narrowPeak and broadPeak files are BED files with further columns.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_scan import BLOCK_BYTES
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.utils.errors import DataError

_POSITION_COLUMNS = 3
_DETAIL_COLUMNS = 10
_SIGNAL_COLUMN, _SUMMIT_COLUMN = 6, 9  # of narrowPeak, counted from 0
_GFF_COLUMNS = (8, 9)
MAX_POSITION_DIGITS = 18
_HEADER_WORDS = (b"track", b"browser")
_STRANDS = (b"+", b"-")
_PEAK_NAME = re.compile(r"\.(narrow|broad)peak(\.b?gz)?$", re.IGNORECASE)
_SHOWN_LETTERS = 40
_GFF_TO_BED = r"""awk -F '\t' -v OFS='\t' '$3 == "gene" {print $1, $4 - 1, $5, ".", ".", $7}'"""


@dataclass(frozen=True, eq=False)
class Details:
    """The optional columns of a BED, GFF or GTF file, for n intervals.

    `name` is "" where it is missing. `score` (n,) is NaN where it is missing or not a number; it is the signal of a
    narrowPeak or broadPeak file. `strand` (n,) holds one byte each: +, - or a dot. `summit` (n,) is the number of bases
    from the interval's start to its peak, -1 where it is missing.
    """

    name: list[str]
    score: NDArray[np.float64]
    strand: NDArray[np.bytes_]
    summit: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Intervals:
    """The n intervals of a BED, GFF or GTF file, in file order. All arrays are int64 of shape (n,).

    `contig` is an index into `contig_names`. `start` and `end` are positions in the contig. `line` is the interval's
    line number, counted from 1. `display_name` is the file's name in messages.
    """

    display_name: str
    contig_names: list[str]
    contig: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    line: NDArray[np.int64]
    details: Details | None = None

    def __len__(self) -> int:
        return len(self.contig)


def read_intervals(path: str | os.PathLike[str], details: bool = False) -> Intervals:
    """Read a plain or gzip BED file with three or more columns, separated by tabs or blanks.

    `details` also reads the columns name, score and strand, and the summits of a narrowPeak file. Empty lines,
    comments, and `track` and `browser` lines are skipped. Raises `DataError` with the line number for any other line
    that is not an interval, and for a file without intervals.
    """
    numbers: dict[bytes, int] = {}
    contig, start, end, line = (array("q") for _ in range(4))
    rest: list[list[bytes]] = []
    with Input(path, "a BED file") as source:
        for number, columns in _rows(source, _DETAIL_COLUMNS if details else _POSITION_COLUMNS):
            contig.append(numbers.setdefault(columns[0], len(numbers)))
            start.append(int(columns[1]))
            end.append(int(columns[2]))
            line.append(number)
            if details:
                rest.append(columns[_POSITION_COLUMNS:])
        if not contig:
            raise DataError(f"{source.display_name}: has no interval; pass a BED file (contig, start and end)")
    starts, ends = np.array(start, dtype=np.int64), np.array(end, dtype=np.int64)
    if len(backwards := np.flatnonzero(starts > ends)):
        row = int(backwards[0])
        raise DataError(
            f"{source.display_name}, line {line[row]}: start {start[row]} is after end {end[row]}; swap the two columns"
        )
    return Intervals(
        display_name=source.display_name,
        contig_names=[name.decode("utf-8", "backslashreplace") for name in numbers],
        contig=np.array(contig, dtype=np.int64),
        start=starts,
        end=ends,
        line=np.array(line, dtype=np.int64),
        details=_details(rest, ends - starts, is_peak_file(source.display_name)) if details else None,
    )


def _rows(source: Input, max_splits: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the line number and the columns of each interval, split at most `max_splits` times.

    Start and end have only digits. Raises `DataError` for a line that is neither an interval nor a comment.
    """
    for number, text in enumerate(source.text_lines(), 1):
        if text.startswith(b"#"):
            continue
        columns = text.rstrip().split(b"\t" if b"\t" in text else None, max_splits)
        # bytes.isdigit() accepts no sign, blank or underscore, whereas int() does.
        if (
            len(columns) >= _POSITION_COLUMNS
            and columns[1].isdigit()
            and columns[2].isdigit()
            and len(columns[1]) <= MAX_POSITION_DIGITS
            and len(columns[2]) <= MAX_POSITION_DIGITS
            and len(text) < BLOCK_BYTES
        ):
            yield number, columns
        elif text.strip() and text.split(None, 1)[0] not in _HEADER_WORDS:
            raise DataError(f"{source.display_name}, line {number}: {_fault(text, columns)}")


def _fault(text: bytes, columns: list[bytes]) -> str:
    """Return what is wrong with a line that is not an interval, and how to fix it."""
    if len(text) >= BLOCK_BYTES:
        return f"is longer than {BLOCK_BYTES:,} bytes; pass a BED file (contig, start and end)"
    gff = text.rstrip().split(b"\t")
    if len(gff) in _GFF_COLUMNS and gff[3].isdigit() and gff[4].isdigit():
        return f"looks like GFF or GTF, not BED; convert the file first ({_GFF_TO_BED} FILE)"
    if len(columns) < _POSITION_COLUMNS:
        return f"not BED: expected contig, start and end, separated by tabs or blanks, found {_short(text)}"
    name, value = next(
        (name, value)
        for name, value in (("start", columns[1]), ("end", columns[2]))
        if not value.isdigit() or len(value) > MAX_POSITION_DIGITS
    )
    return f"not BED: {name} {_short(value)} is not a whole number of 0 or more; fix it, or begin a header line with #"


def _short(text: bytes) -> str:
    shown = text.strip().decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= _SHOWN_LETTERS else f"{shown[:_SHOWN_LETTERS]}…")


def is_peak_file(name: str) -> bool:
    """Return whether a file name has the suffix of ENCODE's narrowPeak or broadPeak format."""
    return _PEAK_NAME.search(name) is not None


def _details(rest: list[list[bytes]], lengths: NDArray[np.int64], are_peaks: bool) -> Details:
    """Return the optional columns. `rest` holds the columns of each interval from the fourth on, as far as they exist.

    `are_peaks`: The columns are those of narrowPeak or broadPeak. So are those of a file whose lines all have the ten
    columns of narrowPeak and no more: ENCODE names such files .bed.gz.
    """
    are_peaks = are_peaks or all(len(columns) == _DETAIL_COLUMNS - _POSITION_COLUMNS for columns in rest)

    def column(number: int, missing: bytes) -> list[bytes]:
        index = number - _POSITION_COLUMNS
        return [columns[index] if len(columns) > index else missing for columns in rest]

    names = [name.decode("utf-8", "backslashreplace") for name in column(3, b"")]
    scores = np.array([parse_score(text) for text in column(_SIGNAL_COLUMN if are_peaks else 4, b"")], dtype=np.float64)
    strands = np.array([strand if strand in _STRANDS else b"." for strand in column(5, b".")])
    offsets = [text.strip() for text in column(_SUMMIT_COLUMN, b"")] if are_peaks else [b""] * len(rest)
    summits = np.array(
        [int(text) if text.isdigit() and len(text) <= MAX_POSITION_DIGITS else -1 for text in offsets], dtype=np.int64
    )
    summits[summits >= lengths] = -1
    return Details(names, scores, strands, summits)


def is_position(text: str) -> bool:
    """Return whether a text is a position: digits only, and not too many of them."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_POSITION_DIGITS


def parse_score(text: bytes | str) -> float:
    """Return the finite number in a score column, or NaN if it holds none."""
    try:
        score = float(text)
    except ValueError:
        return np.nan
    is_plain = b"_" not in text if isinstance(text, bytes) else "_" not in text
    return score if is_plain and math.isfinite(score) else np.nan


# Sets of ranges: arrays (n, 2) of start and end, sorted by start, where no range is empty and no two overlap


def merge(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the union of ranges (n, 2) in any order, as a set of ranges. Ranges that overlap or touch become one."""
    ranges = ranges[ranges[:, 1] > ranges[:, 0]]
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ranges[:, 1])
    is_first = np.ones(len(ranges), dtype=bool)
    is_first[1:] = ranges[1:, 0] > reached[:-1]
    is_last = np.append(is_first[1:], True)[: len(ranges)]
    return np.stack([ranges[is_first, 0], reached[is_last]], axis=1)


def intersect(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the parts that two sets of ranges share, cut where a range of either set begins or ends."""
    first = np.searchsorted(other[:, 1], one[:, 0], "right")
    last = np.searchsorted(other[:, 0], one[:, 1], "left")
    counts = np.maximum(last - first, 0)
    row = np.repeat(np.arange(len(one)), counts)
    partner = first[row] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.maximum(one[row, 0], other[partner, 0])
    return np.stack([starts, np.minimum(one[row, 1], other[partner, 1])], axis=1)


def subtract(ranges: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a set of ranges without `parts`. Each part must be inside one of the ranges."""
    starts = np.sort(np.concatenate([ranges[:, 0], parts[:, 1]]))
    ends = np.sort(np.concatenate([ranges[:, 1], parts[:, 0]]))
    return np.stack([starts, ends], axis=1)[ends > starts]
