"""Padding of token sequences, and windows over long sequences (numpy)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import PAD_ID, UNK_ID


def pad_rows(
    rows: Sequence[NDArray], width: int | None = None, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad token sequences with `[PAD]` on the right or left. Return ids and attention mask, both int64.

    `rows` are B arrays of ids. The results have the shape (B, `width`), and no array may be longer than `width`. If
    `width` is None, raises ValueError unless all arrays have the same length.
    """
    lengths = np.array([len(row) for row in rows])
    if width is None and lengths.min() < lengths.max():
        raise ValueError(
            "texts of different lengths can't form a tensor; pass padding=True, and truncation=True to limit the length"
        )
    width = int(lengths.max()) if width is None else width
    coordinates = np.arange(width)
    is_token = coordinates >= width - lengths[:, None] if left else coordinates < lengths[:, None]
    ids = np.full(is_token.shape, PAD_ID, dtype=np.int64)
    ids[is_token] = np.concatenate(rows)
    return ids, is_token.astype(np.int64)


def padded_width(rows: Sequence[NDArray], strategy: str, max_length: int | None, multiple: int) -> int | None:
    """Return the padded length of sequences under a Hugging Face padding strategy, or None for no padding."""
    longest = max(map(len, rows))
    width = {"longest": longest, "max_length": max_length}.get(strategy)
    return None if width is None else -(-max(width, longest) // multiple) * multiple


def has_known_kmer(ids: NDArray) -> bool:
    """Return whether any of the token ids (T,), without special tokens, is a k-mer instead of `[UNK]`.

    A window without a known k-mer tells a model nothing. Such a window is left out of the mean over a sequence's
    windows, both in fine-tuning and in inference.
    """
    return bool((ids != UNK_ID).any())


def windows(num_tokens: int, length: int, stride: int | None = None) -> Iterator[range]:
    """Yield windows of `length` tokens over `num_tokens` tokens, as index ranges whose starts are `stride` apart.

    The default stride is half a window. Every token is in at least one window. The last window ends with the last
    token, so it may overlap more with the window before it. If all tokens fit in one window, or if `num_tokens` is 0,
    there is a single window.

    Raises ValueError for a stride that would skip tokens.
    """
    if not 0 < (stride := stride or max(1, length // 2)) <= length:
        raise ValueError(f"stride {stride} skips tokens between windows of {length}; choose one from 1 to {length}")
    last = max(0, num_tokens - length)
    for start in range(0, last, stride):
        yield range(start, start + length)
    yield range(last, num_tokens)


def middle(num_tokens: int, max_tokens: int) -> range:
    """Return the index range of the middle `max_tokens` tokens.

    If the number of tokens to cut is odd, one more is cut on the right than on the left.
    """
    start = max(0, num_tokens - max_tokens) // 2
    return range(start, min(num_tokens, start + max_tokens))
