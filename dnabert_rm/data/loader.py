"""The loader of one rank: PyTorch's DataLoader over sample indices. Its only state is the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import DataLoader

from dnabert_rm.data.batches import BatchPlan, micro_batches
from dnabert_rm.data.dataset import WindowDataset


class MicroBatchSampler:
    """Sample indices of each micro-batch that one rank takes, from `first_step` to `last_step` (exclusive)."""

    def __init__(
        self, plan: BatchPlan, first_step: int, last_step: int, rank: int, num_ranks: int, accumulation: int
    ) -> None:
        self.plan, self.first_step, self.last_step = plan, first_step, last_step
        self.rank, self.num_ranks, self.accumulation = rank, num_ranks, accumulation

    def __iter__(self) -> Iterator[NDArray]:
        for step in range(self.first_step, self.last_step):
            yield from micro_batches(self.plan, step, self.rank, self.num_ranks, self.accumulation)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation


def make_loader(
    dataset: WindowDataset,
    collate: Callable[[Any], dict[str, Any]],
    sampler: MicroBatchSampler,
    *,
    num_workers: int = 0,
    prefetch: int = 4,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader of collated micro-batches in the sampler's order, whatever the number of workers.

    Starting at a step is a seek: nothing before it is read. Workers are forked copies of `dataset`; what they
    return depends on the sample indices alone.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # it has __getitems__, which is all that is called
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pin_memory,
    )
