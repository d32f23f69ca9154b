"""Chance as a pure function: counter-based draws from (seed, what for, index).

Every random choice of the project is a 64-bit hash of its coordinates, so it depends on nothing
that ran before it: not on workers, prefetch, ranks or a resume. The hash is SplitMix64's
finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
applied once a coordinate.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, in place on a fresh array."""
    words ^= words >> np.uint64(30)
    words *= _MIX_1
    words ^= words >> np.uint64(27)
    words *= _MIX_2
    words ^= words >> np.uint64(31)
    return words


def key(seed: int, purpose: str) -> np.uint64:
    """The 64-bit key of one purpose ("spans", "strand", …) under one seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def fold(parent: ArrayLike, index: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits of each (key, index) pair, which serve as bits or as keys for another `fold`.

    Args: `parent` uint64 and `index` non-negative integers of shapes that broadcast.
    Returns uint64 of the broadcast shape.
    """
    # One dimension at least: numpy wraps around silently in arrays, but warns on scalars.
    words = np.array(index, dtype=np.uint64, ndmin=1)
    words += np.uint64(1)
    words *= _GOLDEN
    words = _mix(words + np.asarray(parent, dtype=np.uint64))
    return words if np.ndim(parent) or np.ndim(index) else words.reshape(())


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform in [0, 1) from the upper 53 bits of each word."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.int64]:
    """Uniform integers in 0 … bound - 1, bound < 2^31.

    The product of the upper 32 bits with the bound, shifted down (Lemire, "Fast random integer
    generation in an interval", 2019): no value's probability is off by more than 2^-32.
    """
    product = (bits >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)
    return (product >> np.uint64(32)).astype(np.int64)


def permutation(parent: ArrayLike, size: int) -> NDArray[np.int64]:
    """A random order of 0 … size - 1, by sorting hashed keys (ties by index)."""
    return np.argsort(fold(parent, np.arange(size)), kind="stable")
