"""Patches for PyTorch: the lock around extension builds, and the timeout of process groups."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dnabert_rm.utils.lock import LockHeldError, PosixLock


class BuildLock:
    """Replacement for torch's `FileBaton`: one process builds an extension while the others wait.

    The operating system releases a POSIX lock if the process is killed, but a `FileBaton` would remain. A POSIX lock
    also works in home folders that nodes share. On a file system without locks, every process builds the extension.
    """

    def __init__(self, lock_file_path: str, **_: Any) -> None:
        """Open the lock file `<lock_file_path>.held`. Torch's `FileBaton` would create `lock_file_path` itself."""
        self._lock = PosixLock(Path(f"{lock_file_path}.held"))

    def try_acquire(self) -> bool:
        """Try to acquire the lock. Return whether this process has to build the extension."""
        try:
            self._lock.acquire()
        except LockHeldError:
            return False
        except OSError:
            return True
        return True

    def wait(self) -> None:
        """Wait until the process that builds the extension has finished or died."""
        try:
            self._lock.acquire(wait=True)
        finally:
            self.release()

    def release(self) -> None:
        """Release the lock, so that the waiting processes continue."""
        self._lock.release()


def install_build_lock() -> None:
    """Replace the lock that torch holds while it compiles an extension.

    What is changed: `torch.utils.cpp_extension.FileBaton` becomes `BuildLock`, for the whole process.

    Reason: a `FileBaton` is a file that remains if the process is killed. Every later run then waits forever, without
    a message.

    Upstream: pytorch/pytorch#189245. Pull request #190543 replaces the file by `flock`, but is not in torch 2.13.
    """
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = BuildLock  # type: ignore[assignment,misc]


def set_group_timeout(timeout: timedelta, group: dist.ProcessGroup | None = None) -> None:
    """Set the timeout of later collectives in `group`, by default the group of all ranks.

    What is changed: nothing in torch. Before torch 2.14, the private function `_set_pg_timeout` is called.

    Reason: before torch 2.14, the public API sets the timeout only when a group is created. DeepSpeed creates its
    groups itself.

    Upstream: torch/distributed/distributed_c10d.py. Since torch 2.14, the public function is `set_timeout`.
    """
    name = "set_timeout" if hasattr(dist.distributed_c10d, "set_timeout") else "_set_pg_timeout"
    getattr(dist.distributed_c10d, name)(timeout, group)
