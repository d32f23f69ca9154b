"""Batches in which stretches of bases are hidden completely: every token that covers a hidden base is `[MASK]`.

Shapes: B windows of L tokens with [CLS] and [SEP], M masked tokens, k bases per token, H hidden bases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import CLS_ID, MASK_ID, SEP_ID, encode_with_unknown

MIN_FLANK_SHARE = 8
"""A hidden stretch is at least an eighth of the window away from the window's ends, unless the sequence ends there."""


@dataclass(frozen=True)
class WindowShape:
    """How a model reads a sequence: k, the distance between tokens, and the number of tokens in a window."""

    k: int
    stride: int
    """1 for overlapping k-mers, k for non-overlapping ones."""
    num_tokens: int
    """Tokens per window, [CLS] and [SEP] not included."""

    @property
    def num_bases(self) -> int:
        """Bases that a full window covers."""
        return self.bases_of(self.num_tokens)

    def bases_of(self, num_tokens: int) -> int:
        """Return the number of bases that consecutive tokens cover."""
        return (num_tokens - 1) * self.stride + self.k

    def tokens_in(self, num_bases: int) -> int:
        """Return the number of tokens per window in a sequence of `num_bases` bases, fewer if the sequence is short."""
        return min(self.num_tokens, max(0, (num_bases - self.k) // self.stride + 1))

    def flank(self, num_hidden: int) -> int:
        """Return the smallest number of visible bases between a hidden stretch and the window's ends."""
        return max(self.k + num_hidden + 1, self.num_bases // MIN_FLANK_SHARE)

    def can_hide(self, num_hidden: int) -> bool:
        """Return whether a window is long enough for a hidden stretch with visible bases on both sides."""
        return self.num_bases > 2 * self.flank(num_hidden)


@dataclass(frozen=True)
class HiddenWindow:
    """A window of a sequence, with the hidden stretches to score in it.

    `sequence` is the index of the sequence, and `start` the window's first base in it. `stretches` holds the indices of
    the hidden stretches.
    """

    sequence: int
    start: int
    num_tokens: int
    stretches: NDArray[np.int64]


@dataclass(frozen=True)
class HiddenBatch:
    """Windows of one length with hidden bases. Arrays are int64."""

    input_ids: NDArray[np.int64]
    """(B, L) tokens; each token that covers a hidden base is `[MASK]`."""
    positions: NDArray[np.int64]
    """(M,) positions of the masked tokens in the flattened batch."""
    hidden: NDArray[np.int64]
    """(M, k) the number of the hidden base at each place of each masked token, or H for a visible base."""
    true_codes: NDArray[np.int64]
    """(H,) codes of the hidden bases, stretch by stretch."""
    stretches: NDArray[np.int64]
    """(H,) the index of each hidden base's stretch."""


def place_windows(
    lengths: Sequence[int], sequence: NDArray[np.int64], start: NDArray[np.int64], num_hidden: int, shape: WindowShape
) -> list[HiddenWindow]:
    """Return windows such that each hidden stretch is in one of them, as far from the window's ends as possible.

    Args:
        lengths: Number of bases in each sequence.
        sequence: (S,) the index of each stretch's sequence, ascending.
        start: (S,) where each stretch starts in its sequence, ascending within a sequence.
        num_hidden: Bases in a stretch.
        shape: How the model reads a sequence.
    """
    windows = []
    core = max(1, shape.num_bases - 2 * shape.flank(num_hidden))
    for number in np.unique(sequence).tolist():
        indices = np.flatnonzero(sequence == number)
        first = int(start[indices[0]])
        span = int(start[indices[-1]]) - first + 1
        num_windows = -(-span // core)
        part = (start[indices] - first) * num_windows // span
        for window in np.unique(part).tolist():
            middle = first + span * (2 * window + 1) // (2 * num_windows) + num_hidden // 2
            num_tokens = shape.tokens_in(lengths[number])
            num_bases = shape.bases_of(num_tokens)
            begin = max(0, min(middle - num_bases // 2, lengths[number] - num_bases))
            windows.append(HiddenWindow(number, begin, num_tokens, indices[part == window]))
    return windows


def make_batches(
    sequences: Sequence[NDArray[np.uint8]],
    windows: Sequence[HiddenWindow],
    start: NDArray[np.int64],
    num_hidden: int,
    shape: WindowShape,
    batch_size: int,
) -> Iterator[HiddenBatch]:
    """Yield the windows in batches. Windows in a batch have the same length, so no batch needs padding.

    Args:
        sequences: Base codes of each sequence.
        windows: Result of `place_windows`.
        start: (S,) where each stretch starts in its sequence.
        num_hidden: Bases in a stretch.
        shape: How the model reads a sequence.
        batch_size: Largest number of windows in a batch.
    """
    for num_tokens in sorted({window.num_tokens for window in windows}, reverse=True):
        alike = [window for window in windows if window.num_tokens == num_tokens]
        for first in range(0, len(alike), batch_size):
            yield _make_batch(sequences, alike[first : first + batch_size], start, num_hidden, shape)


def _make_batch(
    sequences: Sequence[NDArray[np.uint8]],
    windows: Sequence[HiddenWindow],
    start: NDArray[np.int64],
    num_hidden: int,
    shape: WindowShape,
) -> HiddenBatch:
    num_tokens = windows[0].num_tokens
    num_bases = shape.bases_of(num_tokens)
    codes = np.stack([sequences[window.sequence][window.start : window.start + num_bases] for window in windows])
    row = np.repeat(np.arange(len(windows)), [len(window.stretches) for window in windows])
    stretches = np.concatenate([window.stretches for window in windows])
    begin = start[stretches] - np.array([window.start for window in windows])[row]
    is_covered = begin + num_hidden <= num_bases  # non-overlapping tokens can leave out the end of a short sequence
    row, stretches, begin = row[is_covered], stretches[is_covered], begin[is_covered]

    places = begin[:, None] + np.arange(num_hidden)
    hidden_of_base = np.full(codes.shape, places.size, dtype=np.int64)
    hidden_of_base[row[:, None], places] = np.arange(places.size).reshape(places.shape)

    token_bases = np.arange(num_tokens)[:, None] * shape.stride + np.arange(shape.k)
    hidden = hidden_of_base[:, token_bases]  # (B, tokens, k)
    is_masked = (hidden < places.size).any(axis=2)
    ids = np.stack([encode_with_unknown(window, shape.k)[:: shape.stride] for window in codes]).astype(np.int64)
    input_ids = np.empty((len(windows), num_tokens + 2), dtype=np.int64)
    input_ids[:, 0], input_ids[:, -1] = CLS_ID, SEP_ID
    input_ids[:, 1:-1] = np.where(is_masked, MASK_ID, ids)
    rows, columns = np.nonzero(is_masked)
    return HiddenBatch(
        input_ids=input_ids,
        positions=rows * (num_tokens + 2) + columns + 1,
        hidden=hidden[rows, columns],
        true_codes=codes[row[:, None], places].reshape(-1).astype(np.int64),
        stretches=np.repeat(stretches, num_hidden),
    )
