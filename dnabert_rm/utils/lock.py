"""Inter-process locks, which the operating system releases when the process that holds them ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_HELD = (errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, errno.EPERM)
"""Errors of `flock` on file systems without locks."""


class LockHeldError(Exception):
    """Another process holds the lock. `holder` is that process's description in the lock file, or empty."""

    def __init__(self, path: Path, holder: str = "") -> None:
        super().__init__(f"{path} is locked by another process")
        self.holder = holder


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = False, required: bool = False) -> Iterator[None]:
    """Hold a file lock during the `with` block. The file must be on a local disk, since filelock uses `flock`.

    Raises `LockHeldError` if another process holds the lock and `wait` is false. On a file system without locks,
    `OSError` is raised if `required` is true. If `required` is false, the block runs without a lock, after a warning on
    standard error.
    """
    # On a file system without flock, filelock would use a marker file, which remains if its process is killed.
    from filelock import FileLock, Timeout  # takes a quarter of a second, which `--help` need not wait for

    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockHeldError(path) from None
    except (NotImplementedError, OSError) as error:
        if required and isinstance(error, NotImplementedError):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path)) from None
        if required or (isinstance(error, OSError) and error.errno not in _UNSUPPORTED):
            raise
        report_unlocked(path.parent, error)
    try:
        yield
    finally:
        # Closing the file releases the lock, even if a network file system reports an error.
        with contextlib.suppress(OSError):
            lock.release()


class PosixLock:
    """POSIX record lock (`lockf`), for a folder on a file system that several nodes share.

    Forked data loader workers do not inherit a POSIX lock. They would inherit the `flock` that filelock uses, and could
    hold it after their rank has ended. POSIX locks also work on every NFS server that has a lock manager.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, creating it if it is missing."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock.

        Raises `LockHeldError` if another process holds the lock and `wait` is false. Raises `OSError` on a file
        system without locks.
        """
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _HELD:
                raise
            raise LockHeldError(self.path, os.read(self._descriptor, 1000).decode(errors="replace").strip()) from None

    def note_holder(self, text: str) -> None:
        """Write a description of this process into the lock file. Ignore errors, since the description is optional."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, text.encode())

    def release(self) -> None:
        """Release the lock and close its file. Ignore errors of a network file system, which releases it anyway."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def report_unlocked(folder: Path, error: Exception) -> None:
    """Warn on standard error that a folder can't be locked."""
    reason = getattr(error, "strerror", None) or str(error)
    print(
        f"warning: {folder}: can't be locked ({reason}); don't start a second process in this folder", file=sys.stderr
    )
