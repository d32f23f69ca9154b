"""The loader of one rank: PyTorch's DataLoader over numbered micro-batches. Its only state is the first step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info

from dnabert_rm.data.batching import BatchPlan, check_split, micro_batch
from dnabert_rm.data.dataset import WindowBatch, WindowDataset
from dnabert_rm.data.sampler import Windows
from dnabert_rm.utils.errors import UserError

Collate = Callable[[tuple[NDArray[np.int64], NDArray]], dict[str, Any]]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a rank to stop."""
LOCATED_AHEAD = 4096
"""Samples that a worker locates at once: the order's cost is one of calls, not of samples."""


class MicroBatchSampler:
    """Sample indices of each micro-batch that one rank takes, from `first_step` to `last_step` (exclusive).

    A micro-batch has `micro_size` windows; how many of them make a step follows from the step's global batch.
    """

    def __init__(
        self, plan: BatchPlan, first_step: int, last_step: int, rank: int, num_ranks: int, micro_size: int
    ) -> None:
        """`ConfigError` where a global batch of the plan does not divide into ranks x `micro_size`."""
        self.plan, self.first_step, self.last_step = plan, first_step, max(first_step, last_step)
        self.rank, self.num_ranks, self.micro_size = rank, num_ranks, micro_size
        stretches = [first_step, *(step for step, _, _ in plan.points if first_step < step < last_step)]
        self._steps = np.array(stretches)
        self._accumulation = np.array([self.accumulation(step) for step in stretches])
        # Number of the first micro-batch of each stretch of steps with one batch size, and of the end.
        lengths = np.diff([*stretches, self.last_step])
        self._numbers = np.concatenate([[0], np.cumsum(lengths * self._accumulation)])

    def accumulation(self, step: int) -> int:
        """Micro-batches that a rank takes in a step."""
        return check_split(self.plan.batch_of_step(step), self.num_ranks, self.micro_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for number in range(len(self)):
            yield self[number]

    def __len__(self) -> int:
        return int(self._numbers[-1])

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """Sample indices of the micro-batch of that number, counted from `first_step`."""
        step, turn, accumulation = self._place(number)
        return micro_batch(self.plan, step, turn, self.rank, self.num_ranks, accumulation)

    def step_of(self, number: int) -> int:
        """The step that a micro-batch belongs to."""
        return self._place(number)[0]

    def _place(self, number: int) -> tuple[int, int, int]:
        """Step, turn within the step, and turns of the step, of a micro-batch."""
        stretch = int(np.searchsorted(self._numbers[:-1], number, side="right")) - 1
        accumulation = int(self._accumulation[stretch])
        steps, turn = divmod(number - int(self._numbers[stretch]), accumulation)
        return int(self._steps[stretch]) + steps, turn, accumulation


class _MicroBatches:
    """What runs in a worker: micro-batch number i, collated. The result depends on i alone."""

    def __init__(self, dataset: WindowDataset, collate: Collate, sampler: MicroBatchSampler) -> None:
        self._dataset, self._collate, self._sampler = dataset, collate, sampler
        self._ahead: dict[int, tuple[NDArray[np.int64], Windows]] = {}

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> dict[str, Any] | UserError:
        """The batch; a user's error is handed over as it is, because PyTorch would wrap it in a traceback."""
        samples, found = self._located(number)
        try:
            windows: WindowBatch = self._dataset.windows(samples, self._sampler.step_of(number), found)
        except UserError as error:
            error.on_one_rank = True
            return error
        batch = self._collate((windows.samples, windows.ids))
        return {**batch, "num_replaced": torch.from_numpy(np.array(windows.num_replaced))}

    def _located(self, number: int) -> tuple[NDArray[np.int64], Windows]:
        """Samples of a micro-batch and where they lie; found together with what this worker is asked for next."""
        if number not in self._ahead:
            worker = get_worker_info()
            numbers = range(number, len(self), worker.num_workers if worker else 1)
            numbers = numbers[: max(1, LOCATED_AHEAD // len(self._sampler[number]))]
            parts = [self._sampler[other] for other in numbers]
            found, ends = self._dataset.locate(np.concatenate(parts)), np.cumsum([len(part) for part in parts])
            self._ahead = {
                other: (part, found[end - len(part) : end])
                for other, part, end in zip(numbers, parts, ends, strict=True)
            }
        return self._ahead.pop(number)


class Loader:
    """Collated micro-batches in the sampler's order, whatever the number of workers."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises the `UserError` that a worker met when its micro-batch is due."""
        for batch in self._start():
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _start(self) -> Iterator[Any]:
        """Start the workers, with stop signals blocked from birth where a function takes care of them."""
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
    """A loader of one rank's micro-batches: what `collate` makes of (samples (B,), ids (B, T)), and `num_replaced`.

    Starting at a step is a seek: nothing before it is read. `prefetch` is the micro-batches that each worker holds
    ready; `num_replaced`, a scalar int64, counts the windows that stand in for those of bad shards.
    `prepare_worker(number)` runs first in each worker process, which begins with `STOP_SIGNALS` blocked.
    """
    batches: DataLoader[Any] = DataLoader(
        _MicroBatches(dataset, collate, sampler),  # type: ignore[arg-type]  # all that is called is there
        batch_size=None,
        sampler=range(len(sampler)),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
    )
    return Loader(batches)


def _as_it_is(batch: Any) -> Any:
    return batch
