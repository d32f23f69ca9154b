"""Process group of a run: `Ranks`, `process_group()` and the timeouts of collectives."""

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

from dnabert_rm.distributed.device import select_device, threads_of_rank
from dnabert_rm.distributed.launchers import RankInfo
from dnabert_rm.distributed.rendezvous import CHECK_SECONDS, LONGEST_SECONDS, Rendezvous, join_rendezvous
from dnabert_rm.distributed.watchdog import FIRST_TIMES
from dnabert_rm.patches.pytorch_patches import set_group_timeout
from dnabert_rm.utils.errors import EXIT_USER_ERROR, ConfigError

_FAILED = "group failed"
_POLL_SECONDS = 0.3
_EXIT_DELAY_SECONDS = 1.5
"""How long a failed rank waits before it exits. The other ranks need this time to report their errors, before
the launcher or the exit of rank 0 kills them."""


@dataclass(frozen=True)
class Ranks:
    """Rank, world size and device of this process."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def device_name(self) -> str:
        """Product name of the GPU, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files that only one rank writes."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(
    threads_per_rank: int = 0,
    timeout: timedelta | None = None,
    *,
    start_seconds: float = 600.0,
    check: Callable[[Rendezvous], None] | None = None,
) -> Iterator[Ranks]:
    """Join the process group of the ranks that a launcher started, or make a process group with a single rank.

    The backend is NCCL on GPUs and gloo on CPUs. The group is always destroyed after the block, because the process can
    crash with `terminate called` if a group is left.

    Args:
        threads_per_rank: Number of CPU threads for this rank. 0 means the rank's share of the usable cores.
        timeout: Timeout of collectives. None means torch's default.
        start_seconds: Timeout of the rendezvous in seconds.
        check: Called after the rendezvous and before the first collective.
    """
    rendezvous = join_rendezvous(start_seconds)
    if check:
        check(rendezvous)
    info = rendezvous.info
    device = select_device(info)
    torch.set_num_threads(threads_per_rank or threads_of_rank(info, len(os.sched_getaffinity(0))))
    try:
        make_process_group(rendezvous, device, timeout)
        yield Ranks(info.rank, info.world_size, info.local_rank, info.local_world_size, device)
    except BaseException as error:
        if dist.is_initialized() and dist.get_backend() == "nccl" and getattr(error, "on_one_rank", True):
            # The other ranks don't know of the error. Destroying NCCL's groups would wait for them, and hide the error.
            dist.distributed_c10d._abort_process_group()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def make_process_group(rendezvous: Rendezvous, device: torch.device, timeout: timedelta | None) -> None:
    """Make the process group and test it with a sum over the ranks. `timeout` applies to all later collectives.

    If this fails on any rank, all ranks end with exit code 2 within seconds. The first rank that fails raises
    `ConfigError`.
    """
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    info = rendezvous.info
    start_timeout = timedelta(seconds=CHECK_SECONDS)
    try:
        with _exit_if_other_rank_failed(rendezvous):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", rendezvous.store),
                rank=info.rank,
                world_size=info.world_size,
                timeout=start_timeout,
                device_id=device_id,
            )
            _test_sum(info, device, start_timeout)
    except RuntimeError as error:
        _end_all_ranks(rendezvous, device, " ".join(str(error).split())[:200])
    timeout = timeout or dist.distributed_c10d._get_default_timeout(dist.Backend(backend))
    set_group_timeout(timeout)
    # Groups that are made later, perhaps after long work, use this store too.
    rendezvous.store.set_timeout(timeout)


def _test_sum(info: RankInfo, device: torch.device, timeout: timedelta) -> None:
    found = torch.tensor([info.rank + 1.0], device=device)
    dist.all_reduce(found, async_op=True).wait(timeout)
    expected = info.world_size * (info.world_size + 1) / 2
    if float(found) != expected:
        raise RuntimeError(f"a sum over the ranks gives {float(found):g} instead of {expected:g}")


def _end_all_ranks(rendezvous: Rendezvous, device: torch.device, reason: str) -> None:
    """Make all other ranks exit. Raise `ConfigError` if this rank is the first to fail, otherwise exit silently."""
    try:
        is_first = rendezvous.store.add(_FAILED, 1) == 1
    except RuntimeError:
        is_first = True
    time.sleep(_EXIT_DELAY_SECONDS)
    if not is_first:
        raise SystemExit(EXIT_USER_ERROR)
    variable = "NCCL_SOCKET_IFNAME" if device.type == "cuda" else "GLOO_SOCKET_IFNAME"
    error = ConfigError(
        f"rank {rendezvous.info.rank} on {socket.gethostname()}: the rendezvous succeeded, but the ranks can't "
        f"exchange data ({reason}); set {variable} to the network interface between the nodes, and check the firewall"
    )
    error.on_one_rank = True
    raise error from None


@contextlib.contextmanager
def _exit_if_other_rank_failed(rendezvous: Rendezvous) -> Iterator[None]:
    """Exit this process as soon as another rank fails during the block.

    Without this exit, torch might wait for the failed rank for minutes.
    """
    # A separate connection, because the first one is busy while torch waits.
    store = rendezvous.store.clone()  # type: ignore[attr-defined]
    done = threading.Event()
    thread = threading.Thread(target=_watch_for_failure, args=(store, done, rendezvous.info), name="start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch_for_failure(store: dist.Store, done: threading.Event, info: RankInfo) -> None:
    while not done.wait(_POLL_SECONDS):
        try:
            has_failed = store.check([_FAILED])
        except RuntimeError:
            if info.local_rank == 0:
                print(
                    f"rank {info.rank} on {socket.gethostname()}: rank 0 ended during startup; see its output",
                    file=sys.stderr,
                )
            os._exit(EXIT_USER_ERROR)
        if has_failed:
            if info.rank == 0:
                time.sleep(_EXIT_DELAY_SECONDS)
            os._exit(EXIT_USER_ERROR)


def collective_timeout(limit: float) -> timedelta:
    """Return a timeout of collectives that is longer than the watchdog's `limit` in seconds.

    The watchdog therefore reports a hang before a collective times out. If `limit` is 0, the watchdog is off and the
    timeout is a year, which is also the longest.
    """
    return timedelta(seconds=min(limit * FIRST_TIMES + 60 if limit else LONGEST_SECONDS, LONGEST_SECONDS))


def set_collective_timeout(timeout: timedelta) -> None:
    """Set the timeout of all existing process groups. Call this after DeepSpeed has made its groups.

    Torch gives each new group the default timeout (10 minutes on GPUs), not the timeout of the first group.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        set_group_timeout(timeout, group)
