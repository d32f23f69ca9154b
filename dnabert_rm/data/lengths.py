"""Window lengths drawn per step, as DNABERT draws them per window. Pure functions of (seed, step)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm import draws

LENGTHS = ("full", "random")
SHORTEST_TOKENS = 5
"""DNABERT's shortest pretraining sequence, in tokens."""


def tokens_of_steps(seed: int, steps: ArrayLike, full_tokens: int) -> NDArray[np.int64]:
    """Tokens of the windows of each step under `data.lengths` "random", shape of `steps`, int64.

    Half of the steps have `full_tokens`, the others a length uniform over 5 … `full_tokens` (DNABERT's rule). All
    windows of a step have one length, so that no padding is ever needed.
    """
    bits = draws.fold(draws.key(seed, "length"), steps)
    spread = max(1, full_tokens - SHORTEST_TOKENS + 1)
    drawn = np.minimum(SHORTEST_TOKENS, full_tokens) + draws.below(draws.fold(bits, 0), spread)
    return np.where(bits >> np.uint64(63) == 1, drawn, full_tokens)


def crop_offsets(seed: int, samples: ArrayLike, full_tokens: int, num_tokens: int) -> NDArray[np.int64]:
    """First token of each shortened window within the full one, uniform; shape of `samples`, int64."""
    bits = draws.fold(draws.key(seed, "crop"), samples)
    return draws.below(bits, full_tokens - num_tokens + 1)
