"""Steps of masking: draw span centres, merge the spans, replace tokens. Pure numpy, without loops over tokens.

Shapes: B windows in a batch, T tokens in a window without special tokens, M masked tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import MASK_ID, NUM_SPECIAL
from dnabert_rm.utils import random

REPLACEMENTS = ("token", "span", "mask")
MASK_SHARE = 0.8
RANDOM_SHARE = 0.1
_MASK_BELOW = np.uint64(round(MASK_SHARE * 2**32) << 32)
_RANDOM_BELOW = np.uint64(round((MASK_SHARE + RANDOM_SHARE) * 2**32) << 32)


def plateau_loss(entropy: float) -> float:
    """Return the loss, in nats per masked token, of a model that knows only how frequent each k-mer is.

    `entropy` is the loss of such a model on `[MASK]`. Any other token is equally likely to be unchanged or random. A
    prediction that gives one half to the visible token and one half to the frequencies costs ln 2 for an unchanged
    token, and `entropy` + ln 2 for a random one. Where k-mers differ much in frequency, a better prediction trusts
    frequent visible tokens less: by 0.1 % of the loss for yeast, and by 1 % at 86 % A+T. Many runs stay near this loss
    before the model learns to use neighbours.
    """
    return (MASK_SHARE + RANDOM_SHARE) * entropy + (1 - MASK_SHARE) * math.log(2)


def span_reach(span: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each span length, return the number of tokens before the centre and the number of tokens after the centre.

    A span of m tokens around centre i covers tokens i - ceil(m/2) + 1 … i + floor(m/2). A span of 6 tokens covers
    i - 2 … i + 3, as in DNABERT.
    """
    return (span + 1) // 2 - 1, span // 2


def span_table(choices: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Convert P lists of span lengths, one list for each masking phase, to two arrays.

    The first array, (P, longest list) int64, has one list per row, padded with 0. The second array, (P,) int64, holds
    the number of span lengths in each list.
    """
    counts = np.array([len(spans) for spans in choices])
    table = np.zeros((len(choices), counts.max()), dtype=np.int64)
    for number, spans in enumerate(choices):
        table[number, : len(spans)] = spans
    return table, counts


def draw_spans(
    keys: NDArray[np.uint64], table: NDArray[np.int64], counts: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return one span length per window, (B,) int64 for B windows, drawn uniformly from a row of a `span_table`.

    Args:
        keys: (B,) uint64, one random key per window.
        table, counts: The two arrays that `span_table` returns.
        row: (B,) int64, the index of each window's row in `table`.
    """
    return table[row, random.below(keys, counts[row])]


def draw_centres(keys: NDArray[np.uint64], num_tokens: int, rate: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which tokens are centres of masked spans, (B, T) bool for B windows of T tokens.

    Tokens are drawn independently, with their window's probability. Each 64-bit hash serves two tokens with 32 bits
    each, so probabilities are exact to 2^-32.

    Args:
        keys: (B,) uint64, one random key per window.
        num_tokens: Tokens per window, T.
        rate: Probability that a token is a centre, for each window, (B,) float64.
    """
    words = random.fold(keys[:, None], np.arange((num_tokens + 1) // 2))
    halves = words.astype("<u8", copy=False).view("<u4")[:, :num_tokens]
    threshold = np.minimum(np.ceil(rate * 2.0**32), 2.0**32) - 1
    return halves <= threshold.astype(np.uint32)[:, None]


def unite_spans(centres: NDArray[np.bool_], span: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens are in a span around any centre, (B, T) bool for B windows of T tokens.

    Spans are cut at the ends of the window.

    Args:
        centres: Whether each token is the centre of a span, (B, T) bool.
        span: Span length in each window, (B,) int64, at least 1.
    """
    num_tokens = centres.shape[1]
    before, after = span_reach(span)
    rows, columns = np.divmod(np.flatnonzero(centres), num_tokens)
    first = np.maximum(columns - before[rows], 0)
    last = np.minimum(columns + after[rows], num_tokens - 1)
    # Shape (C, longest span) for C centres. Extra columns of a shorter span repeat its last token.
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
    """Return the input tokens for M masked positions, (M,) int64.

    80 % become `[MASK]`, 10 % random k-mers, and 10 % stay unchanged, unless `replacement` is "mask". Random tokens are
    uniform over the k-mers and never special tokens.

    Args:
        targets: (M,) int64, the original tokens, sorted by window and position.
        rows: (M,) int64, the index of each token's window.
        columns: (M,) int64, the position of each token in its window.
        keys: (B,) uint64, one random key for each of B windows.
        vocab_size: Number of tokens in the vocabulary, special tokens included.
        replacement: "token" chooses between [MASK], random and unchanged for each token separately, as DNABERT does.
            "span" makes one choice for each group of adjacent masked tokens, so that an unchanged token can't reveal
            the masked tokens around it. "mask" replaces every token by `[MASK]`.
    """
    if replacement == "mask":
        return np.full_like(targets, MASK_ID)
    bits = random.fold(keys[rows], columns)
    choice = bits
    if replacement == "span":
        is_first = np.ones(len(rows), dtype=bool)
        is_first[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
        choice = choice[is_first][np.cumsum(is_first) - 1]
    # The upper half of the random bits decides the choice, exact to 2^-32. The lower half decides the k-mer.
    random_ids = NUM_SPECIAL + random.below(bits << np.uint64(32), vocab_size - NUM_SPECIAL)
    kept = np.where(choice < _RANDOM_BELOW, random_ids, targets)
    return np.where(choice < _MASK_BELOW, MASK_ID, kept)
