"""Ranks: joining the process group, small collectives, leaving it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnabert_rm.errors import UserError

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
    def is_first(self) -> bool:
        """Whether this rank writes the files that one rank writes."""
        return self.rank == 0


def gpu_in_use() -> bool:
    """Whether ranks train on GPUs: there is one, and DeepSpeed was not told to take the CPU (DS_ACCELERATOR=cpu)."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


@contextlib.contextmanager
def process_group(threads_per_rank: int = 0) -> Iterator[Ranks]:
    """Join the process group that a launcher described (RANK, WORLD_SIZE …), or make one of a single rank.

    NCCL on GPUs, gloo on CPUs. The group is destroyed however the block is left: one that is not can end in
    `terminate called` at exit.
    """
    _default_environment()
    on_gpu = gpu_in_use()
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    torch.set_num_threads(threads_per_rank or max(1, len(os.sched_getaffinity(0)) // local_world_size))
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_world_size, device)
    finally:
        dist.destroy_process_group()


def _default_environment() -> None:
    """Fill in what no launcher set: one process, or a launcher that gives no local world size."""
    environ = os.environ
    if "RANK" not in environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    environ.setdefault("LOCAL_RANK", "0")
    environ.setdefault("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"])


def sum_over_ranks(values: list[float] | torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Element-wise sum of a small vector over the ranks, float64, on the rank's device."""
    total = torch.as_tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(total)
    return total


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


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()
