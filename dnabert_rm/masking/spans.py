"""From draws to masks: centres, united spans, replacements. Pure numpy, no loop over tokens.

Shapes: B windows of a batch, T real tokens of a window (special tokens are not among them).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import draws
from dnabert_rm.kmer import MASK_ID, NUM_SPECIAL

REPLACEMENTS = ("token", "span")
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


def span_reach(span: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens masked before and after a centre i: a span m covers i - ceil(m/2) + 1 … i + floor(m/2).

    At m = 6 that is i - 2 … i + 3, DNABERT's mask.
    """
    return (span + 1) // 2 - 1, span // 2


def draw_spans(keys: NDArray[np.uint64], choices: tuple[int, ...]) -> NDArray[np.int64]:
    """One span a window, uniform over `choices`; keys (B,) → (B,) int64."""
    return np.asarray(choices, dtype=np.int64)[draws.below(keys, len(choices))]


def draw_centres(keys: NDArray[np.uint64], num_tokens: int, rate: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tokens are centres, each with its window's chance, independently.

    Args: `keys` (B,) uint64, `rate` (B,) float64. Returns (B, T) bool. One 64-bit hash serves two
    tokens, 32 bits each, so a chance is exact to 2^-32.
    """
    words = draws.fold(keys[:, None], np.arange((num_tokens + 1) // 2))
    halves = words.astype("<u8", copy=False).view("<u4")[:, :num_tokens]
    threshold = np.minimum(np.ceil(rate * 2.0**32), 2.0**32).astype(np.uint64)
    return halves < threshold[:, None]


def unite_spans(centres: NDArray[np.bool_], span: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The union of the spans around the centres, cut at the window's ends.

    Args: `centres` (B, T) bool, `span` (B,) int64 >= 1. Returns (B, T) bool.
    """
    num_windows, num_tokens = centres.shape
    before, after = span_reach(span)
    rows, columns = np.nonzero(centres)
    first = np.maximum(columns - before[rows], 0)
    past = np.minimum(columns + after[rows] + 1, num_tokens)
    # Count of spans that open minus spans that close, summed along the window.
    width = num_tokens + 1
    size = num_windows * width
    edges = np.bincount(rows * width + first, minlength=size) - np.bincount(rows * width + past, minlength=size)
    return np.cumsum(edges.reshape(num_windows, width)[:, :num_tokens], axis=1) > 0


def replace(
    ids: NDArray[np.int64], masked: NDArray[np.bool_], keys: NDArray[np.uint64], vocab_size: int, replacement: str
) -> NDArray[np.int64]:
    """The input ids: of the masked tokens 80 % become [MASK], 10 % a random k-mer, 10 % stay.

    Args: `ids` (B, T) int64, `masked` (B, T) bool, `keys` (B,) uint64; `replacement` "token" (each token on
    its own, as DNABERT does) or "span" (one choice a united span, so that an unchanged token can't give its
    span away). Returns (B, T) int64; random tokens are uniform over the k-mers and never special.
    """
    out = ids.copy()
    rows, columns = np.nonzero(masked)
    token_bits = draws.fold(keys[rows], columns)
    if replacement == "span":
        opens = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
        # nonzero goes row by row, so the latest opening token is that of the token's own span.
        span_of_token = np.cumsum(opens[rows, columns]) - 1
        choice = draws.uniform(token_bits[opens[rows, columns]])[span_of_token]
    else:
        choice = draws.uniform(token_bits)
    random_ids = NUM_SPECIAL + draws.below(draws.fold(token_bits, 0), vocab_size - NUM_SPECIAL)
    kept = np.where(choice < MASK_SHARE + RANDOM_SHARE, random_ids, ids[rows, columns])
    out[rows, columns] = np.where(choice < MASK_SHARE, MASK_ID, kept)
    return out
