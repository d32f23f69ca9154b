"""The samples of each step and rank, over a grid of ranks, workers and accumulation steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.data.batching import BatchPlan, micro_batch_samples, micro_batch_size
from dnabert_rm.data.sampler import EpochSampler
from dnabert_rm.utils.errors import ConfigError

RANKS, WORKERS, ACCUMULATIONS = (1, 2, 3, 4, 6, 8, 64), (0, 1, 3), (1, 4)
GRID = list(itertools.product(RANKS, WORKERS, ACCUMULATIONS))
GLOBAL_BATCH = 768
"""A multiple of every ranks x accumulation of the grid."""


def rank_samples(plan: BatchPlan, step: int, rank: int, ranks: int, accumulation: int) -> list[np.ndarray]:
    """Return the samples of each micro-batch that one rank takes in a step, in order."""
    return [micro_batch_samples(plan, step, number, rank, ranks, accumulation) for number in range(accumulation)]


def as_loaded(plan: BatchPlan, first: int, last: int, rank: int, ranks: int, workers: int, accumulation: int) -> list:
    """Return micro-batches as PyTorch's DataLoader does: assigned to the workers in turn and collected in turn."""
    all_batches = [
        batch for step in range(first, last) for batch in rank_samples(plan, step, rank, ranks, accumulation)
    ]
    queues = [all_batches[number :: max(1, workers)] for number in range(max(1, workers))]
    return [queues[number % len(queues)][number // len(queues)] for number in range(len(all_batches))]


def global_batches(plan: BatchPlan, first: int, last: int, ranks: int, workers: int, accumulation: int) -> list:
    """Return the samples of all ranks for each step, in order."""
    loaded = [as_loaded(plan, first, last, rank, ranks, workers, accumulation) for rank in range(ranks)]
    return [
        np.sort(
            np.concatenate([part[batch] for part in loaded for batch in range(number, number + accumulation)])
        ).tolist()
        for number in range(0, (last - first) * accumulation, accumulation)
    ]


@pytest.mark.parametrize(("ranks", "workers", "accumulation"), GRID)
def test_global_batches_are_the_same_for_every_grid_point(ranks, workers, accumulation):
    plan = BatchPlan.constant(GLOBAL_BATCH)
    expected = [list(range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)) for step in range(3, 6)]
    assert global_batches(plan, 3, 6, ranks, workers, accumulation) == expected


@pytest.mark.parametrize(("ranks", "accumulation"), list(itertools.product(RANKS, ACCUMULATIONS)))
def test_an_epoch_is_seen_once(ranks, accumulation):
    """All windows of an epoch are seen over all ranks and steps: none is missing, none comes twice."""
    order = EpochSampler([[9000, 20_000], [5000], [12_000]], 10, 0, drop_to_multiple_of=GLOBAL_BATCH)
    steps = order.epoch_samples // GLOBAL_BATCH
    plan = BatchPlan.constant(GLOBAL_BATCH)
    seen = [
        found
        for rank in range(ranks)
        for step in range(steps, 2 * steps)  # the second epoch
        for batch in rank_samples(plan, step, rank, ranks, accumulation)
        for found in zip(*(array.tolist() for array in vars(order.locate(batch)).values()), strict=True)
    ]
    assert len(seen) == len(set(seen)) == order.epoch_samples
    assert order.num_windows - order.epoch_samples < GLOBAL_BATCH


@settings(deadline=None)
@given(st.sampled_from(GRID), st.sampled_from(GRID), st.integers(1, 20))
def test_a_resume_at_another_grid_point_continues_the_batches(before, after, step):
    plan, last = BatchPlan.constant(GLOBAL_BATCH), 22
    first_part = global_batches(plan, 0, step, *before)
    assert first_part + global_batches(plan, step, last, *after) == global_batches(plan, 0, last, 1, 0, 1)


def test_two_ranks_take_the_micro_batches_of_one_with_twice_the_accumulation():
    plan = BatchPlan.constant(24)
    one_rank = [batch.tolist() for batch in rank_samples(plan, 5, 0, 1, 4)]
    two_ranks = [[batch.tolist() for batch in rank_samples(plan, 5, rank, 2, 2)] for rank in range(2)]
    assert one_rank == [two_ranks[0][0], two_ranks[1][0], two_ranks[0][1], two_ranks[1][1]]


def test_a_rank_keeps_its_residue_and_so_reads_few_streams():
    for step, micro_step in itertools.product(range(3), range(4)):
        assert set(micro_batch_samples(BatchPlan.constant(768), step, micro_step, 5, 8, 4) % 8) == {5}


def test_a_batch_that_does_not_divide_is_refused_with_the_fix():
    assert micro_batch_size(768, 6, 4) == 32
    with pytest.raises(
        ConfigError, match="768 does not divide into 5 ranks x 1 accumulation steps; choose a multiple of 5"
    ):
        micro_batch_size(768, 5, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), max_size=5), st.integers(1, 50))
def test_a_plan_with_changes_gives_every_sample_to_one_step(changes, batch):
    plan = BatchPlan.constant(batch)
    for step, changed in changes:
        plan = plan.changed(step, changed)
    samples = [np.arange(plan.first_sample(step), plan.first_sample(step + 1)) for step in range(60)]
    assert [len(part) for part in samples] == [plan.batch_of_step(step) for step in range(60)]
    everything = np.concatenate(samples)
    assert everything.tolist() == list(range(len(everything)))
    assert plan.step_of(everything).tolist() == np.repeat(np.arange(60), [len(part) for part in samples]).tolist()


def test_the_batch_grows_in_equal_numbers_of_steps():
    plan = BatchPlan.growing(32, 16, 64, 10)
    assert plan.points == ((0, 0, 32), (5, 160, 48), (10, 400, 64))
    assert plan.changed(3, 64) is plan
    assert plan.changed(7, 128).points == ((0, 0, 32), (5, 160, 48), (7, 256, 128))


@pytest.mark.parametrize(
    ("start", "increment", "steps", "field"),
    [(30, 16, 10, "batch_start"), (64, 0, 10, "batch_start"), (80, 0, 10, "batch_start"), (32, 16, 1, "warmup_steps")],
)
def test_an_impossible_warm_up_names_the_field(start, increment, steps, field):
    with pytest.raises(ConfigError, match=field):
        BatchPlan.growing(start, increment, 64, steps)


def test_changing_the_batch_keeps_what_was_consumed():
    plan = BatchPlan.constant(100).changed(7, 30)
    assert plan.points == ((0, 0, 100), (7, 700, 30))
    assert (plan.first_sample(9), plan.batch_of_step(6), plan.batch_of_step(7)) == (760, 100, 30)
    assert plan.changed(9, 30) is plan
    assert plan.changed(5, 100).points == ((0, 0, 100), (5, 500, 100))
    assert plan.changed(0, 8).points == ((0, 0, 8),)


def test_the_remaining_sizes_are_those_of_the_steps_from_first_step_on():
    plan = BatchPlan(((0, 0, 100), (5, 500, 30), (9, 620, 60)))
    assert plan.sizes() == [30, 60, 100]
    assert [plan.sizes(step) for step in (4, 5, 8, 9, 50)] == [[30, 60, 100], [30, 60], [30, 60], [60], [60]]
