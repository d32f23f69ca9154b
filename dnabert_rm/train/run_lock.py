"""One run a folder: the run folder is locked while a run is at work in it."""

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
    """Another run is at work in the run folder, or the folder can't be written."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the run folder while the block runs, on all ranks together; `RunLockedError` names the run that holds it.

    Rank 0 makes the folder and takes the lock before anything else is written there.
    """
    held: list[PosixLock] = []
    on_first_rank(lambda: held.append(lock_run_folder(run)), ranks)
    try:
        yield
    finally:
        for lock in held:
            lock.release()


def lock_run_folder(run: Path) -> PosixLock:
    """Make and lock a run folder for this process; `RunLockedError` where another process holds it.

    On a file system without locks a warning is printed and the run goes on unprotected.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = PosixLock(run / LOCK_NAME)
    except OSError as error:
        raise RunLockedError(f"{run}: can't be written ({error.strerror}); name another --output") from None
    try:
        lock.acquire()
    except LockHeldError as held:
        lock.release()
        raise RunLockedError(
            f"{run}: another run is at work there ({held.holder or 'it has just begun'}); stop it, or name another "
            "--output"
        ) from None
    except OSError as error:
        report_unlocked(run, error)
        return lock
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    lock.note_holder(f"host {socket.gethostname()}, process {os.getpid()}, since {since}\n")
    return lock
