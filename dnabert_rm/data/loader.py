"""Data loader of one rank: PyTorch's `DataLoader` over numbered micro-batches. Its only state is the first step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info

from dnabert_rm.data.batching import BatchPlan, accumulation_steps, micro_batch_samples
from dnabert_rm.data.dataset import WindowBatch, WindowDataset
from dnabert_rm.data.sampler import Windows
from dnabert_rm.utils.errors import UserError

Collate = Callable[[tuple[NDArray[np.int64], NDArray]], dict[str, Any]]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a rank to stop."""
LOCATED_AHEAD = 4096
"""Number of samples that a worker locates at once, because `locate` costs time per call and little per sample."""


class MicroBatchSampler:
    """Sample indices of each micro-batch of one rank, from `first_step` to `last_step` (exclusive).

    Every micro-batch has `micro_batch` windows. A step's global batch determines its number of micro-batches.
    """

    def __init__(
        self, plan: BatchPlan, first_step: int, last_step: int, rank: int, world_size: int, micro_batch: int
    ) -> None:
        """Raise `ConfigError` if a global batch of the plan is not a multiple of `world_size` x `micro_batch`."""
        self.plan = plan
        self.first_step = first_step
        self.last_step = max(first_step, last_step)
        self.rank = rank
        self.world_size = world_size
        self.micro_batch = micro_batch
        # Ranges of steps with one batch size: the first step and the accumulation of each range.
        range_starts = [first_step, *(step for step, _, _ in plan.points if first_step < step < last_step)]
        self._range_starts = np.array(range_starts)
        self._accumulation = np.array([self.accumulation(step) for step in range_starts])
        # Index of the first micro-batch of each range, then the total number of micro-batches.
        range_steps = np.diff([*range_starts, self.last_step])
        self._first_numbers = np.concatenate([[0], np.cumsum(range_steps * self._accumulation)])

    def accumulation(self, step: int) -> int:
        """Return the number of micro-batches that a rank takes in a step."""
        return accumulation_steps(self.plan.batch_of_step(step), self.micro_batch, self.world_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for number in range(len(self)):
            yield self[number]

    def __len__(self) -> int:
        return int(self._first_numbers[-1])

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """Return the sample indices of a micro-batch, (micro_batch,) int64. Number 0 is the first of `first_step`."""
        step, micro_step, accumulation = self._position(number)
        return micro_batch_samples(self.plan, step, micro_step, self.rank, self.world_size, accumulation)

    def step_of(self, number: int) -> int:
        """Return the step that a micro-batch belongs to."""
        return self._position(number)[0]

    def _position(self, number: int) -> tuple[int, int, int]:
        """Return the step of a micro-batch, its micro-step within the step, and the accumulation of the step."""
        index = int(np.searchsorted(self._first_numbers[:-1], number, side="right")) - 1
        accumulation = int(self._accumulation[index])
        steps, micro_step = divmod(number - int(self._first_numbers[index]), accumulation)
        return int(self._range_starts[index]) + steps, micro_step, accumulation


class _BatchDataset:
    """Map-style dataset for the worker processes: maps the number of a micro-batch to its collated batch.

    The batch depends only on that number.
    """

    def __init__(self, dataset: WindowDataset, collate: Collate, sampler: MicroBatchSampler) -> None:
        self._dataset = dataset
        self._collate = collate
        self._sampler = sampler
        self._ahead: dict[int, tuple[NDArray[np.int64], Windows]] = {}

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> dict[str, Any] | UserError:
        """Return the batch, or a `UserError` as a value: PyTorch would wrap a raised one in a traceback."""
        samples, found = self._locate(number)
        try:
            windows: WindowBatch = self._dataset.windows(samples, self._sampler.step_of(number), found)
        except UserError as error:
            error.on_one_rank = True
            return error
        batch = self._collate((windows.samples, windows.ids))
        return {**batch, "num_replaced": torch.from_numpy(np.array(windows.num_replaced))}

    def _locate(self, number: int) -> tuple[NDArray[np.int64], Windows]:
        """Return the samples of a micro-batch and their windows. Locate this worker's next micro-batches as well."""
        if number not in self._ahead:
            worker = get_worker_info()
            numbers = range(number, len(self), worker.num_workers if worker else 1)
            numbers = numbers[: max(1, LOCATED_AHEAD // len(self._sampler[number]))]
            parts = [self._sampler[other] for other in numbers]
            found = self._dataset.locate(np.concatenate(parts))
            ends = np.cumsum([len(part) for part in parts])
            self._ahead = {
                other: (part, found[end - len(part) : end])
                for other, part, end in zip(numbers, parts, ends, strict=True)
            }
        return self._ahead.pop(number)


class Loader:
    """Collated batches in the sampler's order, for any number of workers."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches. A `UserError` of a worker is raised when its micro-batch is due."""
        for batch in self._start():
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _start(self) -> Iterator[Any]:
        """Start the workers. If `prepare_worker` is set, they start with stop signals blocked."""
        blocked = STOP_SIGNALS if self._batches.worker_init_fn else ()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            return iter(self._batches)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(
    dataset: WindowDataset,
    collate: Collate,
    sampler: MicroBatchSampler,
    *,
    num_workers: int = 0,
    prefetch: int = 4,
    pin_memory: bool = False,
    prepare_worker: Callable[[int], None] | None = None,
) -> Loader:
    """Return the loader of one rank. It seeks to its first step and reads nothing before it.

    Args:
        dataset: The windows.
        collate: Makes a batch from (samples (B,), ids (B, T)).
        sampler: The micro-batches of this rank.
        num_workers: Worker processes; 0 loads in this process.
        prefetch: Batches that each worker keeps ready.
        pin_memory: Whether batches are copied to pinned memory.
        prepare_worker: Called first in each worker process, with the worker's index. The process starts with
            `STOP_SIGNALS` blocked.

    The loader adds `num_replaced` to each batch: the number of replacement samples for bad shards, a scalar int64.
    """
    batches: DataLoader[Any] = DataLoader(
        _BatchDataset(dataset, collate, sampler),  # type: ignore[arg-type]  # has all the methods that are called
        batch_size=None,
        sampler=range(len(sampler)),
        collate_fn=_identity,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
    )
    return Loader(batches)


def _identity(batch: Any) -> Any:
    return batch
