"""Counter-based random numbers: pinned values, an independent SplitMix64, uniformity."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.utils import random

WORD = st.integers(0, 2**64 - 1)


def splitmix(state: int) -> int:
    """SplitMix64's finaliser on Python's integers, written from the paper."""
    word = state % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


@settings(deadline=None)
@given(WORD, st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_fold_is_splitmix_at_a_counter(parent, indices):
    expected = [splitmix(parent + (index + 1) * 0x9E3779B97F4A7C15) for index in indices]
    assert random.fold(np.uint64(parent), np.array(indices)).tolist() == expected


def test_splitmix_gives_the_published_sequence():
    """The first outputs of the reference implementation (Vigna, splitmix64.c) for seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random.fold(np.uint64(1234567), np.arange(4)).tolist() == published


def test_key_is_a_hash_of_seed_and_purpose():
    digest = hashlib.blake2b(b"42/mask/span", digest_size=8).digest()
    assert int(random.key(42, "mask/span")) == int.from_bytes(digest, "little")
    assert (
        len({int(random.key(seed, purpose)) for seed in range(50) for purpose in ("a", "b", "order/0/jitter")}) == 150
    )


def test_fold_takes_the_broadcast_shape():
    assert random.fold(np.uint64(1), 2).shape == ()
    assert random.fold(np.uint64(1), np.arange(3)).shape == (3,)
    assert random.fold(np.zeros(4, np.uint64), 2).shape == (4,)
    grid = random.fold(np.arange(4, dtype=np.uint64)[:, None], np.arange(3))
    assert grid.shape == (4, 3)
    assert grid[2, 1] == random.fold(np.uint64(2), 1)


def test_fold_does_not_change_its_arguments():
    index, parent = np.arange(4, dtype=np.uint64), np.arange(4, dtype=np.uint64)
    random.fold(parent, index)
    assert index.tolist() == parent.tolist() == [0, 1, 2, 3]


def test_uniform_is_uniform_in_the_half_open_interval():
    values = random.uniform(random.fold(random.key(0, "test"), np.arange(1_000_000)))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert chi_square(counts) < 160  # 99 degrees of freedom: 1 in 10,000
    assert random.uniform(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2.0**-53]


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 4096, 65536])
def test_below_is_uniform_under_its_bound(bound):
    values = random.below(random.fold(random.key(1, "test"), np.arange(400_000)), bound)
    counts = np.bincount(values, minlength=bound)
    assert len(counts) == bound
    assert chi_square(counts) < bound - 1 + 5 * np.sqrt(2 * bound)


def test_below_covers_both_ends_of_its_range():
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    for bound in (1, 5, 2**31 - 1, 2**31):
        assert random.below(extremes, bound).tolist() == [0, bound - 1]


@settings(deadline=None)
@given(st.integers(0, 200), WORD)
def test_permutation_contains_every_index_once(size, parent):
    assert sorted(random.permutation(np.uint64(parent), size).tolist()) == list(range(size))


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal expectations."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())
