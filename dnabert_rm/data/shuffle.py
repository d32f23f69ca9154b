"""A random permutation of any size, evaluated at single points without storing it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import draws

NUM_ROUNDS = 6


def permuted(keys: NDArray[np.uint64], values: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Image of each value under a random permutation of 0 … size - 1 that its key chooses.

    Args: `keys` uint64, `values` and `sizes` int64 with 0 <= value < size, all of shape (N,).
    Returns (N,) int64. Elements of one key and size see one permutation.

    An alternating Feistel network on a rectangle of a x b >= size cells, with cycle walking
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): since a * b < size + a,
    a second walk is rare.
    """
    height = np.ceil(np.sqrt(sizes)).astype(np.int64)
    width = -(-sizes // height)
    out = np.array(values, dtype=np.int64)
    todo = np.arange(len(out))
    while len(todo):
        out[todo] = _feistel(keys[todo], out[todo], height[todo], width[todo])
        todo = todo[out[todo] >= sizes[todo]]
    return out


def _feistel(
    keys: NDArray[np.uint64], values: NDArray[np.int64], height: NDArray[np.int64], width: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A bijection of 0 … height * width - 1: rounds that shift one coordinate by a hash of the other."""
    row, column = np.divmod(values, width)
    for turn in range(NUM_ROUNDS):
        round_keys = draws.fold(keys, turn)
        if turn % 2 == 0:
            row = (row + draws.below(draws.fold(round_keys, column), height)) % height
        else:
            column = (column + draws.below(draws.fold(round_keys, row), width)) % width
    return row * width + column
