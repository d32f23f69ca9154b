"""Data loader of one rank: PyTorch's `DataLoader` over numbered micro-batches.

The loader keeps no state: a resumed run only sets the first step.
"""

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

Collate = Callable[[tuple[Any, ...]], dict[str, Any]]
"""Function that makes a batch from sample indices (B,), token ids (B, T) and, if it was read, a `SoftMask`."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a rank to stop."""
LOCATED_AHEAD = 4096
"""Number of samples that a worker locates at once, because `locate` costs time per call and little per sample."""


class MicroBatchSampler:
    """Sample indices of each micro-batch of one rank, from `first_step` to `last_step` (exclusive).

    Every micro-batch has `micro_batch` windows. A step with a larger global batch has more micro-batches.
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
        # Ranges of steps with one batch size: the first step and the number of accumulation steps of each range.
        range_starts = [first_step, *(step for step, _, _ in plan.points if first_step < step < last_step)]
        self._range_starts = np.array(range_starts)
        self._accumulation = np.array([self.accumulation(step) for step in range_starts])
        # Index of the first micro-batch of each range, then the total number of micro-batches.
        range_steps = np.diff([*range_starts, self.last_step])
        self._first_numbers = np.concatenate([[0], np.cumsum(range_steps * self._accumulation)])

    def accumulation(self, step: int) -> int:
        """Return the number of micro-batches per rank in a step."""
        return accumulation_steps(self.plan.batch_of_step(step), self.micro_batch, self.world_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for number in range(len(self)):
            yield self[number]

    def __len__(self) -> int:
        return int(self._first_numbers[-1])

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """Return the sample indices of micro-batch `number`, (micro_batch,) int64.

        Number 0 is the first micro-batch of step `first_step`.
        """
        step, micro_step, accumulation = self._position(number)
        return micro_batch_samples(self.plan, step, micro_step, self.rank, self.world_size, accumulation)

    def step_of(self, number: int) -> int:
        """Return the step that a micro-batch belongs to."""
        return self._position(number)[0]

    def _position(self, number: int) -> tuple[int, int, int]:
        """Return a micro-batch's step, its index within that step, and the step's number of micro-batches per rank."""
        index = int(np.searchsorted(self._first_numbers[:-1], number, side="right")) - 1
        accumulation = int(self._accumulation[index])
        steps, micro_step = divmod(number - int(self._first_numbers[index]), accumulation)
        return int(self._range_starts[index]) + steps, micro_step, accumulation


class _BatchDataset:
    """Map-style dataset for the worker processes: maps a micro-batch number to a collated batch.

    The batch depends only on the micro-batch number.
    """

    def __init__(self, dataset: WindowDataset, collate: Collate, sampler: MicroBatchSampler) -> None:
        self._dataset = dataset
        self._collate = collate
        self._sampler = sampler
        self._ahead: dict[int, tuple[NDArray[np.int64], Windows]] = {}

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> dict[str, Any] | UserError:
        """Return the collated batch of a micro-batch number.

        A `UserError` is returned instead of raised, because PyTorch would wrap a raised error in a traceback.
        """
        samples, found = self._locate(number)
        try:
            windows: WindowBatch = self._dataset.windows(samples, self._sampler.step_of(number), found)
        except UserError as error:
            error.on_one_rank = True
            return error
        soft_mask = () if windows.soft_mask is None else (windows.soft_mask,)
        batch = self._collate((windows.samples, windows.ids, *soft_mask))
        return {**batch, "num_replaced": torch.from_numpy(np.array(windows.num_replaced))}

    def _locate(self, number: int) -> tuple[NDArray[np.int64], Windows]:
        """Return the sample indices and window positions of a micro-batch.

        This worker's next micro-batches are located in the same call, which takes little longer than locating one.
        """
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
    """Iterable of collated batches. Their order does not depend on the number of workers."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches in order. Raise a worker's `UserError` in place of the batch that failed."""
        for batch in self._start():
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _start(self) -> Iterator[Any]:
        """Start the workers and return an iterator over their batches.

        If `prepare_worker` is set, the workers start with `STOP_SIGNALS` blocked.
        """
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
    """Return the data loader of one rank. It starts at the sampler's first step and reads no earlier data.

    Args:
        dataset: The windows.
        collate: Function that makes a batch, for B windows of T tokens.
        sampler: The micro-batches of this rank.
        num_workers: Number of worker processes; 0 loads batches in this process.
        prefetch: Number of batches that each worker prepares in advance.
        pin_memory: Whether batches are copied to pinned memory.
        prepare_worker: Function that each worker process calls first, with the worker's index. If it is given,
            workers start with `STOP_SIGNALS` blocked.

    The loader adds `num_replaced`, a scalar int64, to each batch: the number of windows that replace a window of a
    damaged or missing shard.
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
