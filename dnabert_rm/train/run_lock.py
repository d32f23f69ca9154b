"""One run a folder: a lock that the system gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dnabert_rm.distributed.collectives import on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import UserError

LOCK_NAME = ".lock"


class RunLockedError(UserError):
    """Another run is at work in the run folder, or the folder can't be written."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run folder, on all ranks together; `RunLockedError` names the run that holds it.

    Rank 0 makes the folder and takes the lock before anything else is written there.
    """
    descriptor = on_first_rank(lambda: take_lock(run), ranks)
    try:
        yield
    finally:
        if ranks.is_first:
            os.close(descriptor)


def take_lock(run: Path) -> int:
    """Lock a run folder for this process; returns the lock's open file, which must stay open.

    The lock is POSIX's, which works over NFS and is not inherited by loader processes. `RunLockedError` where another
    process holds it. A file system without locks is told of, and the run goes on unprotected.
    """
    path = run / LOCK_NAME
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunLockedError(f"{run}: can't be written ({error.strerror}); name another --output") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            print(f"{run}: can't be locked ({error.strerror}); start no second run there", file=sys.stderr)
            return descriptor
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        os.close(descriptor)
        raise RunLockedError(
            f"{run}: another run is at work there ({holder or 'it has just begun'}); stop it, or name another --output"
        ) from None
    with contextlib.suppress(OSError):  # on a full disk: the name is a courtesy, the lock holds without
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _this_process().encode())
    return descriptor


def _this_process() -> str:
    return f"host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
