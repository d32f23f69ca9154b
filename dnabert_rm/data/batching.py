"""Samples to steps to ranks: which sample indices make the global batch of a step, and whose they are.

Pure. A run's global batch may change at a resume or during a batch-size warm-up; a `BatchPlan`
holds the break points, so that `step_of(n)` and `samples_of_step(s)` stay functions of integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.utils.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """Break points `(first_step, first_sample, global_batch)`, in order, the first at (0, 0, …)."""

    points: tuple[tuple[int, int, int], ...]

    @classmethod
    def constant(cls, global_batch: int) -> BatchPlan:
        """One global batch size throughout: step = n // global_batch."""
        return cls(((0, 0, global_batch),))

    @classmethod
    def growing(cls, start: int, increment: int, global_batch: int, warmup_steps: int) -> BatchPlan:
        """A batch-size warm-up: from `start` by `increment` (0: `start`) to `global_batch`, in equal stretches.

        The batch is `global_batch` from step `warmup_steps` on, or a few steps earlier where the steps don't divide.
        `ConfigError` where the increments don't end at `global_batch` or the steps are too few for them.
        """
        increment = increment or start
        num_stages, rest = divmod(global_batch - start, increment)
        if rest or num_stages < 1:
            raise ConfigError(
                f"train.batch_start: from {start} by train.batch_increment {increment} the batch never becomes "
                f"train.global_batch ({global_batch}); choose an increment that divides {global_batch - start}"
                if global_batch > start
                else f"train.batch_start: {start} must be below train.global_batch ({global_batch})"
            )
        if warmup_steps < num_stages:
            raise ConfigError(
                f"train.batch_warmup_steps: {warmup_steps} is too few for {num_stages} increments of the batch; give "
                f"at least {num_stages}, or a larger train.batch_increment"
            )
        points, sample = [], 0
        for stage in range(num_stages + 1):
            batch = start + stage * increment
            points.append((stage * (warmup_steps // num_stages), sample, batch))
            sample += batch * (warmup_steps // num_stages)
        return cls(tuple(points))

    def __post_init__(self) -> None:
        assert self.points and self.points[0][:2] == (0, 0), self.points
        for (step, sample, batch), (next_step, next_sample, _) in zip(self.points, self.points[1:], strict=False):
            assert next_step > step and next_sample == sample + (next_step - step) * batch, self.points

    def changed(self, step: int, global_batch: int) -> BatchPlan:
        """The plan that leads to `global_batch`: this one if it does, else a constant batch from `step` on."""
        if self.points[-1][2] == global_batch:
            return self
        kept = tuple(point for point in self.points if point[0] < step)
        return BatchPlan((*kept, (step, self.first_sample(step), global_batch)))

    def sizes(self, first_step: int = 0) -> list[int]:
        """The sizes of the global batches from `first_step` on, rising."""
        ends = [point[0] for point in self.points[1:]]
        coming = [batch for (_, _, batch), end in zip(self.points, ends, strict=False) if end > first_step]
        return sorted({*coming, self.points[-1][2]})

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        return np.array(self.points, dtype=np.int64).T

    def _point(self, step: int) -> tuple[int, int, int]:
        return max(point for point in self.points if point[0] <= step)

    def batch_of_step(self, step: int) -> int:
        """Size of the global batch of `step`."""
        return self._point(step)[2]

    def first_sample(self, step: int) -> int:
        """Index of the first sample of `step`; also the samples consumed before it."""
        first_step, first_sample, batch = self._point(step)
        return first_sample + (step - first_step) * batch

    def step_of(self, samples: ArrayLike) -> NDArray[np.int64]:
        """The step of each sample index, same shape, int64."""
        indices = np.asarray(samples, dtype=np.int64)
        steps, firsts, batches = self._columns
        point = np.searchsorted(firsts, indices, side="right") - 1
        return steps[point] + (indices - firsts[point]) // batches[point]


def check_split(global_batch: int, num_ranks: int, accumulation: int) -> int:
    """Samples of one micro-batch; `ConfigError` where the global batch does not divide."""
    parts = num_ranks * accumulation
    if global_batch % parts:
        raise ConfigError(
            f"the global batch of {global_batch} does not divide into {num_ranks} ranks x {accumulation} "
            f"accumulation steps; choose a multiple of {parts}"
        )
    return global_batch // parts


def micro_batch(
    plan: BatchPlan, step: int, turn: int, rank: int, num_ranks: int, accumulation: int
) -> NDArray[np.int64]:
    """The sample indices of the micro-batch that one rank takes in one turn of a step, (samples,).

    Sample n of the global batch belongs to micro-batch n mod (ranks x accumulation), and micro-batch m
    to rank m mod ranks. So rank r holds exactly the samples n = r (mod ranks), the same micro-batches
    come out for 2 ranks x 1 accumulation and 1 rank x 2, and a rank reads few streams.
    """
    size = check_split(plan.batch_of_step(step), num_ranks, accumulation)
    first = plan.first_sample(step) + turn * num_ranks + rank
    return first + num_ranks * accumulation * np.arange(size)


def micro_batches(plan: BatchPlan, step: int, rank: int, num_ranks: int, accumulation: int) -> list[NDArray[np.int64]]:
    """The sample indices of each micro-batch that one rank takes of a step, in the order of its turns."""
    return [micro_batch(plan, step, turn, rank, num_ranks, accumulation) for turn in range(accumulation)]


@dataclass(frozen=True)
class BatchSplit:
    """How the global batches of a run are cut: `micro_batch` windows a forward pass, on `world_size` ranks.

    `global_batch` is the largest of those that are still to come.
    """

    global_batch: int
    micro_batch: int
    world_size: int

    def accumulation(self, global_batch: int) -> int:
        """Micro-batches that a rank takes of a global batch; `ConfigError` where it does not divide."""
        if global_batch % (self.micro_batch * self.world_size):
            raise ConfigError(
                f"train.global_batch: {global_batch} is not a multiple of train.micro_batch x ranks "
                f"({self.micro_batch} x {self.world_size}); change one of them"
            )
        return global_batch // (self.micro_batch * self.world_size)


def split_batch(plan: BatchPlan, micro_batch: int, world_size: int, first_step: int = 0) -> BatchSplit:
    """The split of a plan's batches from `first_step` on, all of which have to divide; `ConfigError` where one doesn't.

    `micro_batch` 0: the plan's smallest batch is not accumulated, so that a run that is resumed within or after a
    batch-size warm-up has the micro-batches of one that was not. Where that can't be, because an earlier part of the
    run had another number of ranks or another batch, the smallest batch to come is not accumulated.
    """
    coming = plan.sizes(first_step)
    if not micro_batch:
        smallest = plan.sizes()[0]
        fits = smallest % world_size == 0 and all(size % smallest == 0 for size in coming)
        micro_batch = check_split(smallest if fits else coming[0], world_size, 1)
    split = BatchSplit(coming[-1], micro_batch, world_size)
    for size in coming:
        split.accumulation(size)
    return split


def make_plan(config: RunConfig) -> BatchPlan:
    """The global batch of every step of a new run; `ConfigError` where its warm-up is impossible."""
    train = config.train
    if not train.batch_start:
        return BatchPlan.constant(train.global_batch)
    return BatchPlan.growing(train.batch_start, train.batch_increment, train.global_batch, train.batch_warmup_steps)
