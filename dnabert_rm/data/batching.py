"""Assignment of samples to steps, ranks and micro-batches, computed from integers only.

`BatchPlan` determines which samples form the global batch of a step. `BatchSplit` divides a global batch into
micro-batches over the ranks. `micro_batch` is always a size: the number of windows in one forward pass on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.utils.errors import ConfigError

# The samples of a step


@dataclass(frozen=True)
class BatchPlan:
    """Global batch size of every step.

    The size may change on a resume or during a batch-size warm-up. `points` lists the sizes in order, each as (first
    step, first sample, global batch). The first entry is (0, 0, …).
    """

    points: tuple[tuple[int, int, int], ...]

    @classmethod
    def constant(cls, global_batch: int) -> BatchPlan:
        """Return a plan with a constant batch size: sample n belongs to step n // global_batch."""
        return cls(((0, 0, global_batch),))

    @classmethod
    def growing(cls, start: int, increment: int, global_batch: int, warmup_steps: int) -> BatchPlan:
        """Return a plan whose batch size grows from `start` to `global_batch` and then stays constant.

        Each increase adds `increment`, or `start` if `increment` is 0. All sizes below `global_batch` have the same
        number of steps. The size `global_batch` is reached at step `warmup_steps`, or a few steps earlier if the number
        of increases does not divide `warmup_steps`.

        Raises `ConfigError` if no positive number of increases leads exactly from `start` to `global_batch`, or if
        `warmup_steps` is smaller than the number of increases.
        """
        increment = increment or start
        num_stages, rest = divmod(global_batch - start, increment)
        if rest or num_stages < 1:
            raise ConfigError(
                f"train.batch_start: the batch can't grow from {start} by increases of {increment} windows "
                f"(train.batch_increment) to exactly {global_batch} (train.global_batch); choose an increment that "
                f"divides {global_batch - start}"
                if global_batch > start
                else f"train.batch_start: {start} must be below train.global_batch ({global_batch})"
            )
        if warmup_steps < num_stages:
            raise ConfigError(
                f"train.batch_warmup_steps: {warmup_steps} steps are too few for {num_stages} increases of the "
                f"global batch; use at least {num_stages} steps, or raise train.batch_increment"
            )
        stage_steps = warmup_steps // num_stages
        points, sample = [], 0
        for stage in range(num_stages + 1):
            batch = start + stage * increment
            points.append((stage * stage_steps, sample, batch))
            sample += batch * stage_steps
        return cls(tuple(points))

    def __post_init__(self) -> None:
        assert self.points and self.points[0][:2] == (0, 0), self.points
        for (step, sample, batch), (next_step, next_sample, _) in zip(self.points, self.points[1:], strict=False):
            assert next_step > step and next_sample == sample + (next_step - step) * batch, self.points

    def changed(self, step: int, global_batch: int) -> BatchPlan:
        """Return a plan whose batch size changes to `global_batch` at `step`, and stays constant from there on.

        If the last batch size of this plan is already `global_batch`, return this plan unchanged. A batch-size warm-up
        then continues as planned.
        """
        if self.points[-1][2] == global_batch:
            return self
        kept = tuple(point for point in self.points if point[0] < step)
        return BatchPlan((*kept, (step, self.first_sample(step), global_batch)))

    def sizes(self, first_step: int = 0) -> list[int]:
        """Return the distinct global batch sizes from `first_step` on, in ascending order."""
        ends = [point[0] for point in self.points[1:]]
        remaining = [batch for (_, _, batch), end in zip(self.points, ends, strict=False) if end > first_step]
        return sorted({*remaining, self.points[-1][2]})

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        return np.array(self.points, dtype=np.int64).T

    def _point(self, step: int) -> tuple[int, int, int]:
        return max(point for point in self.points if point[0] <= step)

    def batch_of_step(self, step: int) -> int:
        """Return the global batch size of a step."""
        return self._point(step)[2]

    def first_sample(self, step: int) -> int:
        """Return the index of a step's first sample. It equals the number of samples consumed before the step."""
        first_step, first_sample, batch = self._point(step)
        return first_sample + (step - first_step) * batch

    def step_of(self, samples: ArrayLike) -> NDArray[np.int64]:
        """Return the step that each sample index belongs to, int64 in the shape of `samples`."""
        indices = np.asarray(samples, dtype=np.int64)
        steps, firsts, batches = self._columns
        point = np.searchsorted(firsts, indices, side="right") - 1
        return steps[point] + (indices - firsts[point]) // batches[point]


def make_batch_plan(config: RunConfig) -> BatchPlan:
    """Return the batch plan of a new run.

    Raises `ConfigError` if the batch-size warm-up can't end at `train.global_batch` or has too few steps.
    """
    train = config.train
    if not train.batch_start:
        return BatchPlan.constant(train.global_batch)
    return BatchPlan.growing(train.batch_start, train.batch_increment, train.global_batch, train.batch_warmup_steps)


# The samples of a rank


@dataclass(frozen=True)
class BatchSplit:
    """The division of a run's global batches into micro-batches over the ranks.

    `global_batch` is the largest global batch size in the remaining steps.
    """

    global_batch: int
    micro_batch: int
    world_size: int

    def accumulation(self, global_batch: int) -> int:
        """Return the number of accumulation steps for a global batch.

        Raises `ConfigError` if `global_batch` is not a multiple of `micro_batch` x `world_size`.
        """
        return accumulation_steps(global_batch, self.micro_batch, self.world_size)


def split_batch(plan: BatchPlan, micro_batch: int, world_size: int, first_step: int = 0) -> BatchSplit:
    """Divide the plan's global batches from `first_step` on into micro-batches of one size.

    If `micro_batch` is 0, the size is chosen so that the smallest global batch of the whole plan has one micro-batch
    per rank. A run that resumes during or after a batch-size warm-up then has the same micro-batches as an
    uninterrupted run.

    This choice is impossible if `world_size` does not divide the smallest global batch of the whole plan, or if the
    smallest global batch does not divide all global batches from `first_step` on. In both cases, only the global
    batches from `first_step` on are considered, and the smallest of them has one micro-batch per rank.

    Raises `ConfigError` if a global batch from `first_step` on is not a multiple of `world_size` times the micro-batch
    size.
    """
    remaining = plan.sizes(first_step)
    if not micro_batch:
        smallest = plan.sizes()[0]
        fits = smallest % world_size == 0 and all(size % smallest == 0 for size in remaining)
        micro_batch = micro_batch_size(smallest if fits else remaining[0], world_size, 1)
    split = BatchSplit(remaining[-1], micro_batch, world_size)
    for size in remaining:
        split.accumulation(size)
    return split


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Return the number of micro-batches per rank in a global batch.

    Raises `ConfigError` if `global_batch` is not a multiple of `micro_batch` x `world_size`.
    """
    if global_batch % (micro_batch * world_size):
        raise ConfigError(
            f"train.global_batch: {global_batch} is not a multiple of train.micro_batch x ranks "
            f"({micro_batch} x {world_size}); change one of them"
        )
    return global_batch // (micro_batch * world_size)


def describe_batch(num_ranks: int, micro_batch: int, accumulation: int) -> str:
    """Return how a global batch is divided, for example "2 ranks x 16 windows x 4 accumulation steps"."""
    text = f"{num_ranks} rank{'s' * (num_ranks > 1)} x {micro_batch} window{'s' * (micro_batch > 1)}"
    return f"{text} x {accumulation} accumulation steps" if accumulation > 1 else text


def micro_batch_size(global_batch: int, world_size: int, accumulation: int) -> int:
    """Return the number of windows in a micro-batch.

    Raises `ConfigError` if `global_batch` is not a multiple of `world_size` x `accumulation`.
    """
    parts = world_size * accumulation
    if global_batch % parts:
        raise ConfigError(
            f"the global batch of {global_batch} does not divide into {world_size} ranks x {accumulation} "
            f"accumulation steps; choose a multiple of {parts}"
        )
    return global_batch // parts


def micro_batch_samples(
    plan: BatchPlan, step: int, micro_step: int, rank: int, world_size: int, accumulation: int
) -> NDArray[np.int64]:
    """Return the sample indices of one micro-batch of a rank, (micro_batch,) int64.

    `micro_step` is the number of the micro-batch among this rank's micro-batches of the step, from 0 on.

    A global batch has world_size x accumulation micro-batches. Sample n of the global batch belongs to micro-batch
    n mod (world_size x accumulation). Micro-batch m belongs to rank m mod world_size. So two ranks with one
    accumulation step have the same micro-batches as one rank with two accumulation steps.

    Rank r therefore reads the samples with n mod world_size = r. If `world_size` divides `data.num_streams`, no two
    ranks read the same stream of windows in an epoch. Each rank then opens fewer shards.
    """
    size = micro_batch_size(plan.batch_of_step(step), world_size, accumulation)
    first = plan.first_sample(step) + micro_step * world_size + rank
    return first + world_size * accumulation * np.arange(size)
