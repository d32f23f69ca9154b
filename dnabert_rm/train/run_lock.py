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
from dnabert_rm.utils.errors import EXIT_USER_ERROR, UserError
from dnabert_rm.utils.lease import Lease
from dnabert_rm.utils.lock import LockHeldError, PosixLock

LOCK_NAME = ".lock"
LEASE_NAME = ".lease"


class RunLockedError(UserError):
    """Another run uses the run folder, or the folder can't be written."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of the run folder during the block.

    Rank 0 creates the folder and takes the lock before anything else is written there. If another run holds the lock,
    every rank raises `RunLockedError` with the host and process of that run.
    """
    locks: list[RunLock] = []
    on_first_rank(lambda: locks.append(RunLock(run)), ranks)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


class RunLock:
    """Lock of a run folder, and a lease for nodes that do not share locks.

    The lease has a file of its own, because a process loses a POSIX lock when it closes the locked file once.
    """

    def __init__(self, run: Path) -> None:
        """Create the run folder, and take its lock and lease.

        Raises `RunLockedError` if another process has one of them, or if the folder can't be written.
        """
        self._run = run
        holder = f"host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self._lease = Lease(run / LEASE_NAME, holder, self._end)
        with _explain(run):
            run.mkdir(parents=True, exist_ok=True)
            self._lock = PosixLock(run / LOCK_NAME)
            try:
                has_lock = self._acquire_lock(holder)
                self._lease.acquire(has_lock=has_lock)
            except BaseException:
                self._lock.release()
                raise

    def _acquire_lock(self, holder: str) -> bool:
        """Take the lock, and return whether the file system has locks."""
        try:
            self._lock.acquire()
        except OSError:
            return False
        self._lock.note_holder(holder + "\n")
        return True

    def release(self) -> None:
        """Release the lease and the lock."""
        self._lease.release()
        self._lock.release()

    def _end(self, holder: str) -> None:
        """End this process at once, before it writes to the folder that another run has taken."""
        line = f"{self._run}: another run has taken this folder while this process did not respond ({holder}); stopped"
        os.write(2, f"\npretrain: error: {line}\n".encode())
        os._exit(EXIT_USER_ERROR)


@contextlib.contextmanager
def _explain(run: Path) -> Iterator[None]:
    """Raise a `RunLockedError` for a lock that another process holds, and for a folder that can't be written."""
    try:
        yield
    except LockHeldError as held:
        raise RunLockedError(
            f"{run}: another run uses this folder ({held.holder or 'it has just started'}); stop that run, or choose "
            "another --output"
        ) from None
    except OSError as error:
        raise RunLockedError(f"{run}: can't be written ({error.strerror}); choose another --output") from None
