"""Means, standard errors and confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dnabert_rm.utils.statistics import half_width, mean_and_half_width, mean_over_groups


def test_the_interval_of_a_small_sample() -> None:
    # Three values with mean 2 and standard deviation 1; Student's t for two degrees of freedom is 4.3027.
    assert mean_and_half_width([1, 2, 3]) == (2, pytest.approx(4.3027 / 3**0.5, rel=1e-4))
    assert mean_and_half_width([5]) == (5, None)
    assert half_width(0.5, 3) == pytest.approx(0.5 * 4.3027, rel=1e-4)


def test_the_error_of_a_mean_over_groups_comes_from_their_spread() -> None:
    sums, counts = np.array([10.0, 24.0, 30.0]), np.array([10, 12, 10])
    mean, error = mean_over_groups(sums, counts)
    # Groups of equal size: the standard error of the mean of their means.
    assert mean_over_groups(np.array([1.0, 2.0, 3.0]) * 10, np.full(3, 10)) == (2, pytest.approx(1 / 3**0.5))
    assert (mean, error) == (2, pytest.approx((1.5 * (10**2 + 0 + 10**2)) ** 0.5 / 32))
    assert mean_over_groups(np.array([1.0, 0.0]), np.array([2, 0])) == (0.5, None)
    assert mean_over_groups(np.zeros(2), np.zeros(2)) == (None, None)


def test_the_interval_holds_the_mean_in_95_of_100_samples() -> None:
    """Groups of unequal size, whose values depend on each other."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        counts = rng.integers(50, 150, 16)
        sums = counts * (2 + rng.normal(0, 0.05, 16)) + rng.normal(0, 0.3, 16) * counts**0.5
        mean, error = mean_over_groups(sums, counts)
        found.append(abs(mean - 2) < half_width(error, 16))
    assert 0.92 < np.mean(found) < 0.98
