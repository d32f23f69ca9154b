"""Division of runs of A, C, G, T into segments.

All functions are pure functions of integers. Lengths are in tokens of k bases. Consecutive segments of a run
share k - 1 bases, so no token is lost. For BPE k is 1, and lengths are in bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ContigAxis:
    """One coordinate axis for all contigs. There is one unused position after each contig.

    Runs of all contigs are then rows of one array, so planning 100,000 scaffolds is as fast as planning one chromosome.

    `starts` holds the contigs' first positions on the axis, `lengths` their lengths in bases. Both have shape
    (contigs,).
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> ContigAxis:
        """Return the axis for contigs of these lengths, in bases."""
        sizes = np.array(lengths, dtype=np.int64)
        return cls(np.cumsum(sizes + 1) - sizes - 1, sizes)

    def contig_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the contig index at each of `positions` (n,), shape (n,)."""
        return np.searchsorted(self.starts, positions, "right") - 1

    def runs(self, gaps: Sequence[NDArray[np.int64]], included: NDArray[np.bool_], unk_bases: int) -> NDArray[np.int64]:
        """Return the start and end of each run between gaps, as positions on the axis, shape (runs, 2).

        Args:
            gaps: Start and end of the gaps of each contig, (n, 2), as positions in the contig.
            included: Whether each contig is included, (contigs,). Excluded contigs have no runs.
            unk_bases: Gaps of at most this many bases do not end a run, except at the ends of a contig.
        """
        contig = np.repeat(np.arange(len(gaps)), [len(rows) for rows in gaps])
        table = np.concatenate([np.empty((0, 2), np.int64), *gaps])
        inside = (table[:, 0] > 0) & (table[:, 1] < self.lengths[contig]) & (table[:, 1] - table[:, 0] <= unk_bases)
        keep = ~inside & included[contig]
        ends = self.starts + self.lengths
        # The stable sort keeps this order for equal starts: an empty contig's gap precedes the unused position.
        rows = np.concatenate(
            [
                np.stack([self.starts, ends], axis=1)[~included],
                table[keep] + self.starts[contig[keep], None],
                np.stack([ends, ends + 1], axis=1),
            ]
        )
        return runs_between(rows[np.argsort(rows[:, 0], kind="stable")], int(ends[-1]))


def runs_between(gaps: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the runs between gaps on an axis of `length` positions, shape (runs, 2).

    The gaps (n, 2) must be sorted and disjoint.
    """
    starts = np.concatenate([[0], gaps[:, 1]])
    ends = np.concatenate([gaps[:, 0], [length]])
    return np.stack([starts, ends], axis=1)[ends > starts]


def cut_at(runs: NDArray[np.int64], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the parts of runs (n, 2) that are cut at the positions `cuts`, shape (m, 2). All bases are kept."""
    inside = cuts[(np.searchsorted(runs[:, 0], cuts, "left") > np.searchsorted(runs[:, 1], cuts, "right"))]
    starts = np.sort(np.concatenate([runs[:, 0], inside]))
    ends = np.sort(np.concatenate([runs[:, 1], inside]))
    return np.stack([starts, ends], axis=1)


def long_enough(runs: NDArray[np.int64], k: int, min_tokens: int) -> NDArray[np.bool_]:
    """Return whether each run (n, 2) holds at least `min_tokens` tokens, and at least one token, shape (n,)."""
    return runs[:, 1] - runs[:, 0] - k + 1 >= max(1, min_tokens)


def cut_runs(runs: NDArray[np.int64], k: int, segment_tokens: int) -> NDArray[np.int64]:
    """Cut runs (n, 2) into nearly equal segments of at most `segment_tokens` tokens, shape (m, 2) in bases.

    A segment with the tokens a … b - 1 of a run covers the run's bases a … b + k - 2.
    """
    tokens = runs[:, 1] - runs[:, 0] - k + 1
    parts = -(-tokens // segment_tokens)
    run = np.repeat(np.arange(len(runs)), parts)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    first = tokens[run] * part // parts[run]
    last = tokens[run] * (part + 1) // parts[run]
    return np.stack([runs[run, 0] + first, runs[run, 0] + last + k - 1], axis=1)
