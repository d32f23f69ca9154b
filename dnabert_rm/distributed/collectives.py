"""Ranks: the process group, small collectives, leaving it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import UserError

T = TypeVar("T")


def sum_over_ranks(values: list[float] | torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Element-wise sum of a small vector over the ranks, float64, on the rank's device."""
    total = torch.as_tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(total)
    return total


def any_rank(value: bool, ranks: Ranks) -> bool:
    """Whether `value` is true on any rank."""
    return bool(sum_over_ranks([float(value)], ranks)[0])


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, a small picklable object, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_every_rank(value: Any) -> list[Any]:
    """Each rank's value, a small picklable object, in the order of the ranks, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` returns on rank 0, on every rank; a `UserError` in it is raised on every rank."""
    outcome: Any = None
    if ranks.is_first:
        try:
            outcome = action()
        except UserError as error:
            outcome = error
    outcome = from_first_rank(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def on_every_rank(action: Callable[[], T]) -> T:
    """What `action`, which waits for no other rank, returns on this one; a `UserError` of any is raised on all."""
    outcome: Any = None
    try:
        outcome = action()
        errors = from_every_rank(None)
    except UserError as error:
        errors = from_every_rank(error)
    for found in filter(None, errors):
        raise found
    return outcome


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()
