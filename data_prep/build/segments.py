"""Which stretches are stored: runs of A, C, G, T, cut into segments.

Pure functions of integers. A "unit" is what a segment is measured in: a token of k bases (so that
consecutive segments of one run share k - 1 bases and no token is lost), or one base for BPE (k = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Line:
    """Contigs end to end, one place apart, so that one array of positions serves for all of them.

    `starts` and `lengths` have shape (contigs,). A hundred thousand scaffolds are planned as fast
    as one chromosome.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Line:
        """Lay out contigs of these lengths."""
        sizes = np.array(lengths, dtype=np.int64)
        return cls(np.cumsum(sizes + 1) - sizes - 1, sizes)

    def contig_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the contig at each of `positions` (n,)."""
        return np.searchsorted(self.starts, positions, "right") - 1

    def runs(self, gaps: Sequence[NDArray[np.int64]], taken: NDArray[np.bool_], unk_bases: int) -> NDArray[np.int64]:
        """Runs between the `gaps` (n, 2) of each contig, in the contigs that are `taken`, (runs, 2) on the line.

        Gaps of at most `unk_bases` bases that have bases on both sides stay inside their run.
        """
        contig = np.repeat(np.arange(len(gaps)), [len(rows) for rows in gaps])
        table = np.concatenate([np.empty((0, 2), np.int64), *gaps])
        inside = (table[:, 0] > 0) & (table[:, 1] < self.lengths[contig]) & (table[:, 1] - table[:, 0] <= unk_bases)
        keep = ~inside & taken[contig]
        ends = self.starts + self.lengths
        # In this order, so that an empty contig's gap stands before the place behind it.
        rows = np.concatenate(
            [
                np.stack([self.starts, ends], axis=1)[~taken],
                table[keep] + self.starts[contig[keep], None],
                np.stack([ends, ends + 1], axis=1),
            ]
        )
        return runs_between(rows[np.argsort(rows[:, 0], kind="stable")], int(ends[-1]))


def runs_between(gaps: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Runs between gaps (n, 2), sorted and apart, of a stretch of `length` bases, shape (runs, 2)."""
    starts = np.concatenate([[0], gaps[:, 1]])
    ends = np.concatenate([gaps[:, 0], [length]])
    return np.stack([starts, ends], axis=1)[ends > starts]


def cut_at(runs: NDArray[np.int64], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut runs (n, 2) at the positions `cuts`, without overlap and without loss."""
    inside = cuts[(np.searchsorted(runs[:, 0], cuts, "left") > np.searchsorted(runs[:, 1], cuts, "right"))]
    return np.stack(
        [np.sort(np.concatenate([runs[:, 0], inside])), np.sort(np.concatenate([runs[:, 1], inside]))], axis=1
    )


def long_enough(runs: NDArray[np.int64], k: int, min_tokens: int) -> NDArray[np.bool_]:
    """Which runs (n, 2) hold at least `min_tokens` (and one) tokens."""
    return runs[:, 1] - runs[:, 0] - k + 1 >= max(1, min_tokens)


def cut_runs(runs: NDArray[np.int64], k: int, segment_tokens: int) -> NDArray[np.int64]:
    """Cut runs (n, 2) into nearly equal segments of at most `segment_tokens` tokens, shape (m, 2) in bases.

    A segment of tokens a … b - 1 of a run covers the run's bases a … b + k - 2.
    """
    tokens = runs[:, 1] - runs[:, 0] - k + 1
    parts = -(-tokens // segment_tokens)
    run = np.repeat(np.arange(len(runs)), parts)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    first = tokens[run] * part // parts[run]
    last = tokens[run] * (part + 1) // parts[run]
    return np.stack([runs[run, 0] + first, runs[run, 0] + last + k - 1], axis=1)
