"""Several data sets in one run: exact shares, and each data set's own order without a gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_bases, write_prepared

from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.sampler import CYCLE, EpochSampler, MixtureSampler
from dnabert_rm.utils.errors import ConfigError

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=2, max_size=4)


def mixture(weights: list[float], seed: int = 0) -> MixtureSampler:
    """Return a mixture of small data sets of different sizes."""
    samplers = [EpochSampler([[500 * (number + 1)]], 10, seed, source=number) for number in range(len(weights))]
    return MixtureSampler(samplers, weights, seed)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(0, 2000))
def test_shares_are_exact_after_every_cycle(weights, cycles):
    sets, indices = mixture(weights).assign(np.arange((cycles + 1) * CYCLE - 5 * CYCLE, (cycles + 1) * CYCLE).clip(0))
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        consumed = indices[sets == number].max(initial=-1) + 1  # the set's samples up to the end of this cycle
        if (sets == number).any():
            assert abs(consumed - share * (cycles + 1) * CYCLE) <= 1


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 10**6))
def test_a_cycle_takes_a_contiguous_range_of_each_set(weights, cycle):
    """So nothing of a data set is missed or seen twice."""
    sets, indices = mixture(weights).assign(np.arange(2 * CYCLE) + cycle * CYCLE)
    for number in range(len(weights)):
        first, second = (indices[half][sets[half] == number] for half in (slice(CYCLE), slice(CYCLE, None)))
        both = np.sort(np.concatenate([first, second]))
        assert (np.diff(both) == 1).all()
        if len(first) and len(second):
            assert first.max() + 1 == second.min()


def test_sets_are_mixed_within_a_cycle():
    sets, _ = mixture([3, 1]).assign(np.arange(CYCLE))
    counts = sets.reshape(-1, 64).sum(axis=1)
    assert counts.mean() == 16
    assert counts.min() >= 4
    assert counts.max() <= 28


def test_windows_follow_each_sets_own_order():
    mixed = mixture([1, 2, 4])
    samples = np.array([7, 5000, 3, 12345, 8])
    sets, indices = mixed.assign(samples)
    found = mixed.locate(samples)
    for row, (number, index) in enumerate(zip(sets.tolist(), indices.tolist(), strict=True)):
        alone = EpochSampler([[500 * (number + 1)]], 10, 0, source=number).locate([index])
        assert [array[row] for array in vars(found).values()] == [array[0] for array in vars(alone).values()]


def test_a_sample_has_the_same_window_in_every_call():
    mixed, samples = mixture([1, 2]), np.arange(20_000)[::7]
    together = vars(mixed.locate(samples))
    backwards = vars(mixture([1, 2]).locate(samples[::-1]))
    assert all((together[name] == backwards[name][::-1]).all() for name in together)


def test_a_share_of_one_sample_per_cycle_is_the_smallest():
    """A smaller one would give a cycle a negative number of samples, so some would come twice."""
    weights = [1 / 3, 1 / CYCLE, 2 / 3 - 1 / CYCLE]
    sets, indices = mixture(weights).assign(np.arange(300 * CYCLE))
    for number in range(3):
        own = np.sort(indices[sets == number])
        assert (own == np.arange(len(own))).all()
    assert abs((sets == 1).sum() - 300) <= 1
    with pytest.raises(ConfigError, match=r"data\.weights: 0\.0001 is less than 1 in 4,096 of their sum 3\.0001"):
        mixture([1, 0.0001, 2])
    # The first and the last data set have one rounded end only, so they may be smaller.
    for small in ([1, 0.0001], [0.0001, 1, 2]):
        sets, indices = mixture(small).assign(np.arange(20 * CYCLE))
        own = np.sort(indices[sets == small.index(0.0001)])
        assert (own == np.arange(len(own))).all() and len(own) > 0


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2], [1, 2, 3], [1, float("nan")], [1, float("inf")]])
def test_weights_that_do_not_fit_are_refused(weights):
    samplers = [EpochSampler([[500]], 10, 0, source=number) for number in range(2)]
    with pytest.raises(ConfigError, match=r"data\.weights .* must hold one positive number for each of 2 data sets"):
        MixtureSampler(samplers, weights, 0)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 1.0], []])
def test_an_epoch_of_a_mixture_ends_when_one_data_set_has_been_read(tmp_path: Path, weights: list[float]) -> None:
    rng = np.random.default_rng(0)
    for name, bases in (("large", 600_000), ("small", 60_000)):
        write_prepared(tmp_path / name, [[random_bases(rng, bases)]], k=3)
    data = WindowDataset([tmp_path / "large", tmp_path / "small"], weights, WindowSettings(window=32), 0)
    sets, _ = data.order.assign(np.arange(int(data.epoch_samples)))
    read = [np.count_nonzero(sets == number) / sampler.num_windows for number, sampler in enumerate(data.samplers)]
    assert max(read) == pytest.approx(1, abs=0.01) and data.num_windows > 1.5 * data.epoch_samples
    single = WindowDataset([tmp_path / "small"], [], WindowSettings(window=32), 0)
    assert single.epoch_samples == single.num_windows
