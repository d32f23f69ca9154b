"""Lock of a run folder, so that only one run at a time writes to it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dnabert_rm.distributed.collectives import on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import UserError
from dnabert_rm.utils.lock import LockHeldError, PosixLock, report_unlocked

LOCK_NAME = ".lock"


class RunLockedError(UserError):
    """Another run uses the run folder, or the folder can't be written."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of the run folder during the block.

    Rank 0 creates the folder and takes the lock before anything else is written there. If another run holds the lock,
    every rank raises `RunLockedError` with the host and process of that run.
    """
    locks: list[PosixLock] = []
    on_first_rank(lambda: locks.append(lock_run_folder(run)), ranks)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def lock_run_folder(run: Path) -> PosixLock:
    """Create a run folder, lock it for this process and return the lock.

    Raises `RunLockedError` if another process holds the lock or the folder can't be written. On a file system without
    locks, prints a warning and continues without protection.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = PosixLock(run / LOCK_NAME)
    except OSError as error:
        raise RunLockedError(f"{run}: can't be written ({error.strerror}); choose another --output") from None
    try:
        lock.acquire()
    except LockHeldError as held:
        lock.release()
        raise RunLockedError(
            f"{run}: another run uses this folder ({held.holder or 'it has just started'}); stop that run, or choose "
            "another --output"
        ) from None
    except OSError as error:
        report_unlocked(run, error)
        return lock
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    lock.note_holder(f"host {socket.gethostname()}, process {os.getpid()}, since {since}\n")
    return lock
