"""Means with confidence intervals or standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any

from numpy.typing import NDArray


def mean_and_half_width(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean of `values`, and the half-width of the mean's 95 % confidence interval.

    The interval for n values uses Student's t distribution with n - 1 degrees of freedom. The half-width is None for a
    single value.
    """
    values = list(values)
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), half_width(stdev(values) / math.sqrt(len(values)), len(values))


def half_width(error: float, number: int) -> float:
    """Return the half-width of a 95 % confidence interval, from the standard error of `number` independent values."""
    from scipy.special import stdtrit

    return float(stdtrit(number - 1, 0.975)) * error


def mean_over_groups(sums: NDArray[Any], counts: NDArray[Any]) -> tuple[float | None, float | None]:
    """Return the mean of values in groups, and its standard error, or None for what is undefined.

    Values of one group, such as neighbouring bases, need not be independent. The error comes from the groups' sums (a
    ratio estimator).

    Args:
        sums: (G,) the sum of each group's values.
        counts: (G,) the number of each group's values.
    """
    if counts.sum() == 0:
        return None, None
    mean = float(sums.sum() / counts.sum())
    used = counts > 0
    number = int(used.sum())
    if number < 2:
        return mean, None
    residuals = (sums - mean * counts)[used]
    return mean, math.sqrt(number / (number - 1) * float((residuals**2).sum())) / float(counts.sum())
