"""Several data sets in one run: which set sample n comes from, exact in the long run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm import draws
from dnabert_rm.data.order import EpochOrder, Windows
from dnabert_rm.data.shuffle import permuted
from dnabert_rm.errors import ConfigError

CYCLE = 4096


class MixtureOrder:
    """Deals samples to data sets by weight, each set in its own order.

    Samples come in cycles of 4,096. After c whole cycles every set has had its exact share of
    c * 4096 samples, to less than one; within a cycle the sets are shuffled.
    """

    def __init__(self, orders: Sequence[EpochOrder], weights: Sequence[float], seed: int) -> None:
        """`ConfigError` unless there is one positive weight a data set."""
        if len(weights) != len(orders) or not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(
                f"data.weights {list(weights)} must hold one positive number for each of {len(orders)} data sets"
            )
        self._orders = list(orders)
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._cumulative[-1] = 1.0
        self._key = draws.key(seed, "mixture")

    def _quota_ends(self, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of sets 0 … d - 1 together after so many cycles, (N, D + 1), rounded."""
        return np.rint(cycles[:, None] * (self._cumulative * CYCLE)).astype(np.int64)

    def assign(self, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Data set and sample index within it of each sample index, both (N,)."""
        cycles, positions = np.divmod(np.asarray(samples, dtype=np.int64).reshape(-1), CYCLE)
        before, after = self._quota_ends(cycles), self._quota_ends(cycles + 1)
        quota_ends = np.cumsum(np.diff(after) - np.diff(before), axis=1)
        slots = permuted(draws.fold(self._key, cycles), positions, np.full(len(cycles), CYCLE))
        sets = (slots[:, None] >= quota_ends).sum(axis=1)
        rows = np.arange(len(cycles))
        first_slot = np.where(sets > 0, quota_ends[rows, sets - 1], 0)
        return sets, np.diff(before)[rows, sets] + slots - first_slot

    def locate(self, samples: ArrayLike) -> Windows:
        """Windows of the sample indices, in their order; `source` is the data set's number."""
        sets, indices = self.assign(samples)
        parts = [(np.flatnonzero(sets == number), order) for number, order in enumerate(self._orders)]
        found = [(rows, order.locate(indices[rows])) for rows, order in parts if len(rows)]
        back = np.argsort(np.concatenate([rows for rows, _ in found]))
        return Windows.concatenate([windows for _, windows in found])[back]
