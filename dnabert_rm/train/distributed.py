"""Ranks: the process group, small collectives, leaving it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnabert_rm.errors import UserError
from dnabert_rm.train.device import take_device, threads_of_rank
from dnabert_rm.train.group import make_group
from dnabert_rm.train.meeting import Meeting, meet

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others; `device` is where its tensors live."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def device_name(self) -> str:
        """The GPU's product name; "cpu" without one."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files that one rank writes."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(
    threads_per_rank: int = 0,
    timeout: timedelta | None = None,
    *,
    start_seconds: float = 600.0,
    check: Callable[[Meeting], None] | None = None,
) -> Iterator[Ranks]:
    """Join the process group of the ranks that a launcher started, or make one of a single rank.

    NCCL on GPUs, gloo on CPUs. `check` runs when the ranks have found each other, for which they wait `start_seconds`,
    and before a collective runs. `timeout` is a collective's, by default torch's. The group is destroyed however the
    block is left: one that is not can end in `terminate called` at exit.
    """
    meeting = meet(start_seconds)
    if check:
        check(meeting)
    info, device = meeting.info, take_device(meeting.info)
    torch.set_num_threads(threads_per_rank or threads_of_rank(info, len(os.sched_getaffinity(0))))
    try:
        make_group(meeting, device, timeout)
        yield Ranks(info.rank, info.world_size, info.local_rank, info.local_world_size, device)
    except BaseException as error:
        if dist.is_initialized() and dist.get_backend() == "nccl" and getattr(error, "on_one_rank", True):
            # The others don't know of it. To destroy NCCL's groups would wait for them, and the error stay untold.
            dist.distributed_c10d._abort_process_group()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


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
