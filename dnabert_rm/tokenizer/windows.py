"""Rows of several lengths as one matrix and its attention mask (numpy)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import PAD_ID


def pad_rows(
    rows: Sequence[NDArray], width: int | None = None, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and attention mask of rows (T_i,), both (B, W) int64, filled up with `[PAD]` on the right or left.

    W is `width`, which no row may exceed, or the length that all rows have; ValueError otherwise.
    """
    lengths = np.array([len(row) for row in rows])
    if width is None and lengths.min() < lengths.max():
        raise ValueError("rows of several lengths make no tensor: pass padding=True, and truncation=True where needed")
    width = int(lengths.max()) if width is None else width
    coordinates = np.arange(width)
    is_token = coordinates >= width - lengths[:, None] if left else coordinates < lengths[:, None]
    ids = np.full(is_token.shape, PAD_ID, dtype=np.int64)
    ids[is_token] = np.concatenate(rows)
    return ids, is_token.astype(np.int64)


def padded_width(rows: Sequence[NDArray], strategy: str, max_length: int | None, multiple: int) -> int | None:
    """Tokens a padded row holds under transformers' padding strategies, or None where rows are not to be padded."""
    longest = max(map(len, rows))
    width = {"longest": longest, "max_length": max_length}.get(strategy)
    return None if width is None else -(-max(width, longest) // multiple) * multiple


def windows(num_tokens: int, room: int, stride: int | None = None) -> Iterator[range]:
    """The windows over `num_tokens` tokens, each of `room` tokens, `stride` apart, by default half a window.

    Every token lies in one window or more. The last window ends with the last token, so it may overlap more. One
    window of all tokens, or of none, where `room` holds them.
    """
    if not 0 < (stride := stride or max(1, room // 2)) <= room:
        raise ValueError(f"stride {stride} of windows of {room} tokens leaves tokens out")
    last = max(0, num_tokens - room)
    for start in range(0, last, stride):
        yield range(start, start + room)
    yield range(last, num_tokens)
