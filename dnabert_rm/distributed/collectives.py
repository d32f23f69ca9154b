"""Collectives for small values: sums, broadcasts, gathers, and errors that every rank raises together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import UserError

T = TypeVar("T")


def sum_over_ranks(values: list[float] | torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the element-wise sum of a small tensor over all ranks, as float64 on this rank's device."""
    total = torch.as_tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(total)
    return total


def any_rank(value: bool, ranks: Ranks) -> bool:
    """Return whether `value` is true on any rank."""
    return bool(sum_over_ranks([float(value)], ranks)[0])


def broadcast_object(value: Any) -> Any:
    """Return rank 0's `value` on every rank. `value` must be a small picklable object."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks in rank order, on every rank. `value` must be a small picklable object."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], T], ranks: Ranks) -> T:
    """Run `action` on rank 0 and return its result on every rank. A `UserError` in `action` is raised on every rank."""
    outcome: Any = None
    if ranks.is_first:
        try:
            outcome = action()
        except UserError as error:
            outcome = error
    outcome = broadcast_object(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def on_every_rank(action: Callable[[], T]) -> T:
    """Run `action` on every rank and return each rank's own result.

    If `action` raises `UserError` on some ranks, every rank raises the error of the lowest of these ranks. `action`
    itself must not wait for another rank.
    """
    outcome: Any = None
    try:
        outcome = action()
        errors = gather_objects(None)
    except UserError as error:
        errors = gather_objects(error)
    for found in filter(None, errors):
        raise found
    return outcome


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()
