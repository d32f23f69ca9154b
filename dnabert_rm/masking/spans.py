"""From draws to masks: centres, united spans, replacements. Pure numpy, no loop over tokens.

Shapes: B windows of a batch, T real tokens of a window (special tokens are not among them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import MASK_ID, NUM_SPECIAL
from dnabert_rm.utils import random

REPLACEMENTS = ("token", "span")
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
_MASK_BELOW, _RANDOM_BELOW = (
    np.uint64(round(share * 2**32) << 32) for share in (MASK_SHARE, MASK_SHARE + RANDOM_SHARE)
)


def span_reach(span: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens masked before and after a centre i: a span m covers i - ceil(m/2) + 1 … i + floor(m/2).

    At m = 6 that is i - 2 … i + 3, DNABERT's mask.
    """
    return (span + 1) // 2 - 1, span // 2


def span_table(choices: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lists of spans as an array: (P, longest list) int64, filled up with 0, and the length of each list, (P,)."""
    counts = np.array([len(spans) for spans in choices])
    table = np.zeros((len(choices), counts.max()), dtype=np.int64)
    for number, spans in enumerate(choices):
        table[number, : len(spans)] = spans
    return table, counts


def draw_spans(
    keys: NDArray[np.uint64], table: NDArray[np.int64], counts: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.int64]:
    """One span a window, uniform over the list in its row of a `span_table`; `keys` and `row` (B,) → (B,) int64."""
    return table[row, random.below(keys, counts[row])]


def draw_centres(keys: NDArray[np.uint64], num_tokens: int, rate: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tokens are centres, each with its window's chance, independently.

    Args: `keys` (B,) uint64, `rate` (B,) float64. Returns (B, T) bool. One 64-bit hash serves two
    tokens, 32 bits each, so a chance is exact to 2^-32.
    """
    words = random.fold(keys[:, None], np.arange((num_tokens + 1) // 2))
    halves = words.astype("<u8", copy=False).view("<u4")[:, :num_tokens]
    threshold = np.minimum(np.ceil(rate * 2.0**32), 2.0**32) - 1
    return halves <= threshold.astype(np.uint32)[:, None]


def unite_spans(centres: NDArray[np.bool_], span: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The union of the spans around the centres, cut at the window's ends.

    Args: `centres` (B, T) bool, `span` (B,) int64 >= 1. Returns (B, T) bool.
    """
    num_tokens = centres.shape[1]
    before, after = span_reach(span)
    rows, columns = np.divmod(np.flatnonzero(centres), num_tokens)
    first = np.maximum(columns - before[rows], 0)
    last = np.minimum(columns + after[rows], num_tokens - 1)
    # (C, longest span) for C centres; what a shorter span has too many of falls on its last token.
    covered = np.minimum(first[:, None] + np.arange(span.max(initial=0)), last[:, None])
    masked = np.zeros_like(centres)
    masked.reshape(-1)[rows[:, None] * num_tokens + covered] = True
    return masked


def replace(
    targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    keys: NDArray[np.uint64],
    vocab_size: int,
    replacement: str,
) -> NDArray[np.int64]:
    """What stands in the input in place of masked tokens: of them 80 % [MASK], 10 % a random k-mer, 10 % unchanged.

    Args: `targets` (M,) int64 the masked tokens, row by row; `rows` and `columns` (M,) int64 their places;
    `keys` (B,) uint64; `replacement` "token" (each token on its own, as DNABERT does) or "span" (one choice a united
    span, so that an unchanged token can't give its span away). Returns (M,) int64; random tokens are uniform over
    the k-mers and never special.
    """
    bits = random.fold(keys[rows], columns)
    choice = bits
    if replacement == "span":
        opens = np.ones(len(rows), dtype=bool)
        opens[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
        choice = choice[opens][np.cumsum(opens) - 1]
    # The choice hangs on the upper half of a word, to 2^-32, and the k-mer on the lower half.
    random_ids = NUM_SPECIAL + random.below(bits << np.uint64(32), vocab_size - NUM_SPECIAL)
    kept = np.where(choice < _RANDOM_BELOW, random_ids, targets)
    return np.where(choice < _MASK_BELOW, MASK_ID, kept)
