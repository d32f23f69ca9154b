"""The process group, made and tried: a first sum over the ranks shows that they can exchange data."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from dnabert_rm.errors import EXIT_USER_ERROR, ConfigError
from dnabert_rm.train.launchers import RankInfo
from dnabert_rm.train.meeting import CHECK_SECONDS, Meeting

_FAILED = "group failed"
_LOOK_SECONDS = 0.3
_LINGER_SECONDS = 1.5
"""How long a rank that ends the run stays, so that the others see why before a launcher or rank 0's end kills them."""


def make_group(meeting: Meeting, device: torch.device, timeout: timedelta | None) -> None:
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


def set_group_timeout(timeout: timedelta, group: dist.ProcessGroup | None = None) -> None:
    """Give a group's later collectives a timeout; None: the first group, of all ranks."""
    # Public, under this name, since torch 2.14.
    name = "set_timeout" if hasattr(dist.distributed_c10d, "set_timeout") else "_set_pg_timeout"
    getattr(dist.distributed_c10d, name)(timeout, group)


def _try_sum(info: RankInfo, device: torch.device, limit: timedelta) -> None:
    found = torch.tensor([info.rank + 1.0], device=device)
    dist.all_reduce(found, async_op=True).wait(limit)
    expected = info.world_size * (info.world_size + 1) / 2
    if float(found) != expected:
        raise RuntimeError(f"a sum over the ranks gives {float(found):g} instead of {expected:g}")


def _end_all(meeting: Meeting, device: torch.device, reason: str) -> None:
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
def _ended_with_others(meeting: Meeting) -> Iterator[None]:
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
