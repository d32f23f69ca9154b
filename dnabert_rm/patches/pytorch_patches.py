"""The process group, made and tried: a first sum over the ranks shows that they can exchange data."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist


def set_group_timeout(timeout: timedelta, group: dist.ProcessGroup | None = None) -> None:
    """Give a group's later collectives a timeout; None: the first group, of all ranks."""
    # Public, under this name, since torch 2.14.
    name = "set_timeout" if hasattr(dist.distributed_c10d, "set_timeout") else "_set_pg_timeout"
    getattr(dist.distributed_c10d, name)(timeout, group)
