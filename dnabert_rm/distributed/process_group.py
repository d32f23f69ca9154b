"""The process group, made and tried: a first sum over the ranks shows that they can exchange data."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dnabert_rm.distributed.device import take_device, threads_of_rank
from dnabert_rm.distributed.launchers import RankInfo
from dnabert_rm.distributed.rendezvous import CHECK_SECONDS, Rendezvous, join_rendezvous
from dnabert_rm.distributed.watchdog import FIRST_TIMES
from dnabert_rm.patches.pytorch_patches import set_group_timeout
from dnabert_rm.utils.errors import EXIT_USER_ERROR, ConfigError

_FAILED = "group failed"
_LOOK_SECONDS = 0.3
_LINGER_SECONDS = 1.5
"""How long a rank that ends the run stays, so that the others see why before a launcher or rank 0's end kills them."""


def make_process_group(meeting: Rendezvous, device: torch.device, timeout: timedelta | None) -> None:
    """Make the process group of the ranks that have met: NCCL on GPUs, gloo on CPUs; `timeout` is its collectives'.

    Where that, or a sum over the ranks, fails on any of them, all end with exit code 2 within seconds, and the first
    one raises a `ConfigError`.
    """
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    info, short = meeting.info, timedelta(seconds=CHECK_SECONDS)
    try:
        with _ended_with_others(meeting):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", meeting.store),
                rank=info.rank,
                world_size=info.world_size,
                timeout=short,
                device_id=device_id,
            )
            _try_sum(info, device, short)
    except RuntimeError as error:
        _end_all(meeting, device, " ".join(str(error).split())[:200])
    timeout = timeout or dist.distributed_c10d._get_default_timeout(dist.Backend(backend))
    set_group_timeout(timeout)
    meeting.store.set_timeout(timeout)  # groups that are made later meet here, after work that may take long


def _try_sum(info: RankInfo, device: torch.device, limit: timedelta) -> None:
    found = torch.tensor([info.rank + 1.0], device=device)
    dist.all_reduce(found, async_op=True).wait(limit)
    expected = info.world_size * (info.world_size + 1) / 2
    if float(found) != expected:
        raise RuntimeError(f"a sum over the ranks gives {float(found):g} instead of {expected:g}")


def _end_all(meeting: Rendezvous, device: torch.device, reason: str) -> None:
    """Raise an error that this rank tells, or end silently where another rank has told of one."""
    try:
        is_first = meeting.store.add(_FAILED, 1) == 1
    except RuntimeError:
        is_first = True
    time.sleep(_LINGER_SECONDS)
    if not is_first:
        raise SystemExit(EXIT_USER_ERROR)
    variable = "NCCL_SOCKET_IFNAME" if device.type == "cuda" else "GLOO_SOCKET_IFNAME"
    error = ConfigError(
        f"rank {meeting.info.rank} on {socket.gethostname()}: the ranks found each other, but can't exchange data "
        f"({reason}); name the network interface between the nodes in {variable}, and check the firewall"
    )
    error.on_one_rank = True
    raise error from None


@contextlib.contextmanager
def _ended_with_others(meeting: Rendezvous) -> Iterator[None]:
    """Inside, this process ends as soon as another rank has failed: it may be waiting for it in torch, for minutes."""
    # A connection of its own: the other one is taken while torch waits.
    store, done = meeting.store.clone(), threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=_watch, args=(store, done, meeting.info), name="start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(store: dist.Store, done: threading.Event, info: RankInfo) -> None:
    while not done.wait(_LOOK_SECONDS):
        try:
            has_failed = store.check([_FAILED])
        except RuntimeError:
            if info.local_rank == 0:
                print(f"rank {info.rank} on {socket.gethostname()}: rank 0 ended during the start", file=sys.stderr)
            os._exit(EXIT_USER_ERROR)
        if has_failed:
            if info.rank == 0:
                time.sleep(_LINGER_SECONDS)
            os._exit(EXIT_USER_ERROR)


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
    check: Callable[[Rendezvous], None] | None = None,
) -> Iterator[Ranks]:
    """Join the process group of the ranks that a launcher started, or make one of a single rank.

    NCCL on GPUs, gloo on CPUs. `check` runs when the ranks have found each other, for which they wait `start_seconds`,
    and before a collective runs. `timeout` is a collective's, by default torch's. The group is destroyed however the
    block is left: one that is not can end in `terminate called` at exit.
    """
    meeting = join_rendezvous(start_seconds)
    if check:
        check(meeting)
    info, device = meeting.info, take_device(meeting.info)
    torch.set_num_threads(threads_per_rank or threads_of_rank(info, len(os.sched_getaffinity(0))))
    try:
        make_process_group(meeting, device, timeout)
        yield Ranks(info.rank, info.world_size, info.local_rank, info.local_world_size, device)
    except BaseException as error:
        if dist.is_initialized() and dist.get_backend() == "nccl" and getattr(error, "on_one_rank", True):
            # The others don't know of it. To destroy NCCL's groups would wait for them, and the error stay untold.
            dist.distributed_c10d._abort_process_group()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def collective_timeout(limit: float) -> timedelta:
    """A collective's timeout, later than that of the watchdog, which waits `limit` seconds; 0: hardly ever."""
    return timedelta(seconds=limit * FIRST_TIMES + 60) if limit else timedelta(days=365)


def set_collective_timeout(timeout: timedelta) -> None:
    """Give all process groups a timeout, once DeepSpeed has made its own.

    Torch gives each new group its default (10 minutes on GPUs), whatever that of the first group is.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        set_group_timeout(timeout, group)
