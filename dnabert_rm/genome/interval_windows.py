"""Place windows of fixed length at intervals, and find the contigs of intervals in a genome."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.intervals import Intervals
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import ConfigError

MINUS, UNSTRANDED = b"-", b"."


def find_contigs(intervals: Intervals, genome: Genome) -> NDArray[np.int64]:
    """Return each interval's contig, as an index into the genome's contigs, or -1 if the genome lacks it, shape (n,).

    Raises `ConfigError` if the genome has none of the contigs.
    """
    numbers = {name: number for number, name in enumerate(genome.names)}
    of_name = np.array([numbers.get(name, -1) for name in intervals.contig_names], dtype=np.int64)
    if (of_name < 0).all():
        raise ConfigError(
            f"{intervals.display_name}: none of its contigs ({_shown(intervals.contig_names)}) is in "
            f"{genome.display_name} ({_shown(genome.names)}); pass the genome that the intervals were made for"
        )
    return of_name[intervals.contig]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def place(intervals: Intervals, anchor: str, window: int, upstream: int, ignore_strand: bool) -> NDArray[np.int64]:
    """Return the start of each interval's window on the forward strand, shape (n,). It may lie outside of the contig.

    The anchor is a base. The window begins `upstream` bases before it in the direction of the interval's strand. A
    mirrored interval on the mirrored strand has the mirrored window. Raises `ConfigError` if an interval has no summit.
    """
    assert intervals.details is not None
    minus = (intervals.details.strand == MINUS) & (not ignore_strand)
    # In the coordinates of its own strand, an interval on the minus strand is [-end, -start), and a base b is -1 - b.
    first = np.where(minus, -intervals.end, intervals.start)
    last = np.where(minus, -intervals.start, intervals.end) - 1
    if anchor == "centre":
        base = (first + last + 1) // 2
    elif anchor == "start":
        base = first
    elif anchor == "end":
        base = np.maximum(first, last)
    else:
        base = _summits(intervals, minus)
    begin = base - upstream
    return np.where(minus, -begin - window, begin)


def _summits(intervals: Intervals, minus: NDArray[np.bool_]) -> NDArray[np.int64]:
    assert intervals.details is not None
    missing = np.flatnonzero(intervals.details.summit < 0)
    if len(missing):
        raise ConfigError(
            f"--anchor summit: {intervals.display_name}, line {intervals.line[missing[0]]} has no summit "
            "(column 10 of a .narrowPeak file); use --anchor centre"
        )
    base = intervals.start + intervals.details.summit
    return np.where(minus, -1 - base, base)
