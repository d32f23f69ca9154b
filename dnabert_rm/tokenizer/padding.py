"""Rows of several lengths as one matrix and its attention mask (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.kmer import PAD_ID


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
    places = np.arange(width)
    is_token = places >= width - lengths[:, None] if left else places < lengths[:, None]
    ids = np.full(is_token.shape, PAD_ID, dtype=np.int64)
    ids[is_token] = np.concatenate(rows)
    return ids, is_token.astype(np.int64)


def padded_width(rows: Sequence[NDArray], strategy: str, max_length: int | None, multiple: int) -> int | None:
    """Tokens a padded row holds under transformers' padding strategies, or None where rows are not to be padded."""
    longest = max(map(len, rows))
    width = {"longest": longest, "max_length": max_length}.get(strategy)
    return None if width is None else -(-max(width, longest) // multiple) * multiple
