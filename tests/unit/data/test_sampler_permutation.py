"""`permute`: a bijection of any size that looks random, without a stored table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.data.sampler import permute
from dnabert_rm.utils import random

KEY = random.key(5, "test")


def permutation(size: int, key: np.uint64 = KEY) -> np.ndarray:
    """Return the whole permutation of one key."""
    return permute(np.full(size, key), np.arange(size), np.full(size, size))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_every_value_has_one_image(size, key):
    assert sorted(permutation(size, np.uint64(key)).tolist()) == list(range(size))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9)), min_size=1, max_size=20))
def test_several_permutations_in_one_call_equal_each_of_them_alone(points):
    sizes = np.array([size for size, _ in points])
    keys = random.fold(KEY, np.array([number for _, number in points]))
    values = sizes // 3
    together = permute(keys, values, sizes)
    alone = [permutation(int(size), key)[value] for size, key, value in zip(sizes, keys, values, strict=True)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_of_a_small_set_are_about_equally_likely(size):
    num_keys = 240_000
    keys = random.fold(KEY, np.arange(num_keys))
    images = np.stack([permute(keys, np.full(num_keys, value), np.full(num_keys, size)) for value in range(size)])
    orders = {order: number for number, order in enumerate(itertools.permutations(range(size)))}
    counts = np.bincount([orders[tuple(column)] for column in images.T.tolist()], minlength=len(orders))
    expected = num_keys / len(orders)
    # Six rounds do not shuffle two to four items perfectly. A deviation of a tenth is too small to affect training.
    assert abs(counts / expected - 1).max() < 0.1, counts


@pytest.mark.parametrize("size", [97, 1000, 65536])
def test_images_look_random(size):
    """Correlation with the value and distance of neighbours are those of a random permutation."""
    num_keys = 40
    correlations, near = [], 0
    for number in range(num_keys):
        image = permutation(size, random.fold(KEY, number))
        correlations.append(np.corrcoef(np.arange(size), image)[0, 1])
        near += int((abs(np.diff(image)) <= 2).sum())
    assert abs(np.mean(correlations)) < 4 / np.sqrt(size * num_keys)
    assert np.std(correlations) * np.sqrt(size) == pytest.approx(1, abs=0.4)
    expected_near = num_keys * 4  # 2 x (size - 1) + 2 x (size - 2) ordered pairs of size x (size - 1), size - 1 times
    assert abs(near - expected_near) < 5 * np.sqrt(expected_near)
