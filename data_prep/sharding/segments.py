"""Division of contigs into gap-free ranges, and of ranges into segments.

All functions are pure functions of integers. The array `runs` (n, 2) holds the start and end of each gap-free range.
Segment lengths are in tokens of k bases. Consecutive segments of a range share k - 1 bases, so that every k-mer is in
exactly one segment. For BPE, k is 1, so lengths are in bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.intervals import intersect, subtract


@dataclass(frozen=True)
class ContigAxis:
    """Coordinates along all contigs laid end to end, with one unused position after each contig.

    With common coordinates the gap-free ranges of all contigs fit in one array. Planning 100,000 scaffolds is then as
    fast as planning one chromosome.

    `starts` holds each contig's first position in these coordinates, `lengths` each contig's length in bases. The shape
    of both arrays is (contigs,).
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> ContigAxis:
        """Return the coordinates for contigs of these lengths, in bases."""
        sizes = np.array(lengths, dtype=np.int64)
        return cls(np.cumsum(sizes + 1) - sizes - 1, sizes)

    def contig_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the contig at each of `positions`, (n,) → (n,).

        Positions count along all contigs laid end to end.
        """
        return np.searchsorted(self.starts, positions, "right") - 1

    def ranges_of(self, included: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the range of each included contig that has bases, shape (ranges, 2).

        `included` (contigs,) selects contigs. Positions count along all contigs laid end to end.
        """
        return np.stack([self.starts, self.starts + self.lengths], axis=1)[included & (self.lengths > 0)]

    def bases_of(self, ranges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many bases of each contig are in `ranges` (n, 2), shape (contigs,). No range crosses contigs."""
        bases = np.zeros_like(self.lengths)
        np.add.at(bases, self.contig_of(ranges[:, 0]), ranges[:, 1] - ranges[:, 0])
        return bases

    def runs(self, gaps: Sequence[NDArray[np.int64]], kept: NDArray[np.int64], unk_bases: int) -> NDArray[np.int64]:
        """Return the gap-free parts of the ranges `kept`, as positions along all contigs laid end to end, (runs, 2).

        Args:
            gaps: For each contig the start and end of its gaps, (n, 2), as positions in the contig.
            kept: Sorted, disjoint, non-empty ranges along all contigs, (ranges, 2).
            unk_bases: Gaps of at most this many bases do not end a run, except at the ends of a range.
        """
        contig = np.repeat(np.arange(len(gaps)), [len(rows) for rows in gaps])
        table = np.concatenate([np.empty((0, 2), np.int64), *gaps]) + self.starts[contig, None]
        table = intersect(table, kept)
        row = kept[np.searchsorted(kept[:, 0], table[:, 0], "right") - 1]
        inside = (table[:, 0] > row[:, 0]) & (table[:, 1] < row[:, 1])
        return subtract(kept, table[~(inside & (table[:, 1] - table[:, 0] <= unk_bases))])


def cut_at(runs: NDArray[np.int64], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut ranges at the positions `cuts`. Return all parts, shape (m, 2).

    `runs` (n, 2) holds the start and end of each range.
    """
    inside = cuts[(np.searchsorted(runs[:, 0], cuts, "left") > np.searchsorted(runs[:, 1], cuts, "right"))]
    starts = np.sort(np.concatenate([runs[:, 0], inside]))
    ends = np.sort(np.concatenate([runs[:, 1], inside]))
    return np.stack([starts, ends], axis=1)


def long_enough(runs: NDArray[np.int64], k: int, min_tokens: int) -> NDArray[np.bool_]:
    """Return whether each range of bases holds at least `min_tokens` k-mers, and at least one k-mer, shape (n,).

    `runs` (n, 2) holds the start and end of each range.
    """
    return runs[:, 1] - runs[:, 0] - k + 1 >= max(1, min_tokens)


def cut_runs(runs: NDArray[np.int64], k: int, segment_tokens: int) -> NDArray[np.int64]:
    """Cut each range of bases into nearly equal segments of at most `segment_tokens` k-mers. Return segments (m, 2).

    `runs` (n, 2) holds the start and end of each range. A segment with k-mers a … b - 1 of a range covers bases
    a … b + k - 2 of this range. Consecutive segments of a range share k - 1 bases.
    """
    tokens = runs[:, 1] - runs[:, 0] - k + 1
    parts = -(-tokens // segment_tokens)
    run = np.repeat(np.arange(len(runs)), parts)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    first = tokens[run] * part // parts[run]
    last = tokens[run] * (part + 1) // parts[run]
    return np.stack([runs[run, 0] + first, runs[run, 0] + last + k - 1], axis=1)
