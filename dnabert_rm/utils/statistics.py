"""Mean and confidence interval of a small sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev


def mean_and_half_width(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % confidence interval.

    The interval for n values uses Student's t distribution with n - 1 degrees of freedom. The half-width is None for a
    single value.
    """
    values = list(values)
    if len(values) < 2:
        return fmean(values), None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.975))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))
