"""Counter-based random numbers: pure functions of (seed, purpose, index).

Every random choice in the project comes from a 64-bit hash of its indices. So no choice depends on workers,
prefetching, ranks or a resume. The hash is SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014), applied once per index.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finaliser to `words` in place, and return `words`."""
    words ^= words >> np.uint64(30)
    words *= _MIX_1
    words ^= words >> np.uint64(27)
    words *= _MIX_2
    words ^= words >> np.uint64(31)
    return words


def key(seed: int, purpose: str) -> np.uint64:
    """Return a 64-bit key for a seed and a purpose such as "spans" or "strand"."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def fold(parent: ArrayLike, index: ArrayLike) -> NDArray[np.uint64]:
    """Return a 64-bit random word for each (key, index) pair. The words can also be keys of another `fold`.

    Args:
        parent: Keys, uint64.
        index: Non-negative integers. The shape must broadcast with the shape of `parent`.

    Returns: uint64 of the broadcast shape.
    """
    # At least one dimension, since numpy warns of overflow on scalars but not in arrays.
    words = np.array(index, dtype=np.uint64, ndmin=1)
    words += np.uint64(1)
    words *= _GOLDEN
    words = _mix(words + np.asarray(parent, dtype=np.uint64))
    return words if np.ndim(parent) or np.ndim(index) else words.reshape(())


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Convert random words to uniform numbers in [0, 1), from the upper 53 bits of each word."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.int64]:
    """Convert random words to uniform integers in 0 … bound - 1, for bounds of at most 2^31.

    The upper 32 bits are multiplied by the bound and shifted right by 32 (Lemire, "Fast random integer generation in an
    interval", 2019). The probability of each value is exact to 2^-32.
    """
    product = (bits >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)
    return (product >> np.uint64(32)).astype(np.int64)


def permutation(parent: ArrayLike, size: int) -> NDArray[np.int64]:
    """Return a random permutation of 0 … size - 1: the indices sorted by hash, or by index if hashes are equal."""
    return np.argsort(fold(parent, np.arange(size)), kind="stable")
