"""A FUSE file system for the tests: another folder, with the delays, faults and caches of a network file system.

    python faulty_file_system.py SOURCE MOUNT CONTROL --locks shared --cache-seconds 3

It runs until it is unmounted. `CONTROL` is a JSON file, which is read again whenever it changes. `mounted_folder.py`
starts the file system and writes this file. Each mount has its own caches and locks, as each node of a cluster has.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import re
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy

_STAT_FIELDS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_blocks", "st_dev", "st_rdev")
_STATVFS_FIELDS = (
    "f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax",
)  # fmt: skip
_FLOCK = "hhqqi4x"


class Faults:
    """What the control file asks for."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._content: dict[str, Any] = {}
        self._counts: dict[int, int] = {}
        self._num_written = 0
        self.stale_before = 0.0
        """Handles that were opened before this time, and whose path matches, are stale."""

    def apply(self, operation: str, path: str, num_bytes: int = 0, opened: float | None = None) -> bool:
        """Wait as long as the control file asks, and raise the error that it asks for.

        Returns whether the caller should also lose the data that were written through the handle.
        """
        with self._lock:
            self._read()
            found = self._error(operation, path, num_bytes, opened)
        time.sleep(self._content.get("delay_ms", 0) / 1000)
        if found is None:
            return False
        name, loses_data = found
        if not loses_data:
            raise mfusepy.FuseOSError(getattr(errno, name))
        return True

    def _read(self) -> None:
        status = self._control.stat()
        if (status.st_mtime_ns, status.st_ino) == self._seen:
            return
        self._content = json.loads(self._control.read_text())
        self._counts, self._num_written = {}, 0
        self.stale_before = time.monotonic()
        self._seen = status.st_mtime_ns, status.st_ino

    def _error(self, operation: str, path: str, num_bytes: int, opened: float | None) -> tuple[str, bool] | None:
        stale = self._content.get("stale")
        if stale and opened is not None and opened < self.stale_before and re.search(stale, path):
            return "ESTALE", False
        for number, fault in enumerate(self._content.get("faults", [])):
            if operation != fault["operation"] or not re.search(fault.get("path", ""), path):
                continue
            self._counts[number] = count = self._counts.get(number, 0) + 1
            first = fault.get("first", 1)
            if first <= count < first + fault.get("times", sys.maxsize):
                return fault["error"], fault.get("loses_data", False)
        limit = self._content.get("bytes_left")
        if limit is not None and operation == "write":
            if self._num_written + num_bytes > limit:
                return "ENOSPC", False
            self._num_written += num_bytes
        return None


class FaultyFileSystem(mfusepy.Operations):
    """The folder `source`, with `faults`. POSIX locks are those of this mount only."""

    use_ns = True

    def __init__(self, source: Path, faults: Faults) -> None:
        self._source = str(source)
        self._faults = faults
        self._opened: dict[int, float] = {}

    def _real(self, path: str) -> str:
        return self._source + path

    def _apply(self, operation: str, path: str, handle: Any = None, num_bytes: int = 0) -> bool:
        return self._faults.apply(operation, path, num_bytes, handle and self._opened.get(handle.fh))

    # Files

    def open(self, path: str, fi: Any) -> int:
        self._apply("open", path)
        # The kernel has applied O_APPEND to the offset already, and may read from a file that is open for writing.
        return self._remember(fi, os.open(self._real(path), fi.flags & ~os.O_APPEND))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._apply("create", path)
        return self._remember(fi, os.open(self._real(path), (fi.flags & ~os.O_APPEND) | os.O_CREAT, mode))

    def _remember(self, fi: Any, descriptor: int) -> int:
        fi.fh = descriptor
        self._opened[descriptor] = time.monotonic()
        return 0

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        self._apply("read", path, fi)
        return os.pread(fi.fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
        self._apply("write", path, fi, len(data))
        return os.pwrite(fi.fh, data, offset)

    def flush(self, path: str, fi: Any) -> int:
        """Called at each `close`. An NFS client writes the data to the server only now, and reports its errors."""
        if self._apply("flush", path, fi):
            os.ftruncate(fi.fh, os.fstat(fi.fh).st_size // 2)
            raise mfusepy.FuseOSError(errno.EIO)
        return 0

    def fsync(self, path: str, datasync: int, fi: Any) -> int:
        self._apply("fsync", path, fi)
        os.fsync(fi.fh)
        return 0

    def release(self, path: str, fi: Any) -> int:
        self._opened.pop(fi.fh, None)
        os.close(fi.fh)
        return 0

    def truncate(self, path: str, length: int, fi: Any = None) -> int:
        self._apply("truncate", path, fi)
        os.truncate(fi.fh if fi else self._real(path), length)
        return 0

    # Names and attributes

    def getattr(self, path: str, fi: Any = None) -> dict[str, Any]:
        self._apply("getattr", path, fi)
        status = os.fstat(fi.fh) if fi else os.lstat(self._real(path))
        times = {f"st_{name}": getattr(status, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return times | {name: getattr(status, name) for name in _STAT_FIELDS}

    def readdir(self, path: str, fi: Any) -> list[str]:
        self._apply("readdir", path)
        return [".", "..", *os.listdir(self._real(path))]

    def statfs(self, path: str) -> dict[str, int]:
        self._apply("statfs", path)
        found = os.statvfs(self._real(path))
        return {name: getattr(found, name) for name in _STATVFS_FIELDS}

    def mkdir(self, path: str, mode: int) -> int:
        self._apply("mkdir", path)
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._apply("rmdir", path)
        os.rmdir(self._real(path))
        return 0

    def unlink(self, path: str) -> int:
        self._apply("unlink", path)
        os.unlink(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        self._apply("rename", new)
        os.rename(self._real(old), self._real(new))
        return 0

    def fsyncdir(self, path: str, datasync: int, fi: Any) -> int:
        self._apply("fsync", path)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._real(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._real(path), ns=times)
        return 0


class SharedLocks(FaultyFileSystem):
    """As `FaultyFileSystem`, with POSIX locks that all mounts of the folder share, as on NFS with a lock manager."""

    def __init__(self, source: Path, faults: Faults) -> None:
        super().__init__(source, faults)
        self._owners: dict[tuple[str, int], int] = {}

    def lock(self, path: str, fi: Any, command: int, lock: Any) -> int:
        """Lock the real file through a descriptor of its own for each owner, because a process may end and unlock."""
        self._apply("lock", path)
        found = lock.contents
        owner = path, fi.lock_owner
        if owner not in self._owners:
            if found.l_type == fcntl.F_UNLCK:
                return 0
            self._owners[owner] = os.open(self._real(path), os.O_RDWR)
        words = struct.pack(_FLOCK, found.l_type, found.l_whence, found.l_start, found.l_len, 0)
        if command == fcntl.F_GETLK:
            words = fcntl.fcntl(self._owners[owner], fcntl.F_OFD_GETLK, words)
            found.l_type, found.l_whence, found.l_start, found.l_len, found.l_pid = struct.unpack(_FLOCK, words)
            return 0
        if found.l_type == fcntl.F_UNLCK:
            os.close(self._owners.pop(owner))
            return 0
        fcntl.fcntl(self._owners[owner], fcntl.F_OFD_SETLKW if command == fcntl.F_SETLKW else fcntl.F_OFD_SETLK, words)
        return 0


class NoLocks(FaultyFileSystem):
    """As `FaultyFileSystem`, without locks."""

    def lock(self, path: str, fi: Any, command: int, lock: Any) -> int:
        raise mfusepy.FuseOSError(errno.ENOLCK)


KINDS = {"local": FaultyFileSystem, "shared": SharedLocks, "none": NoLocks}


def main() -> None:
    """Mount the folder and serve it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("mount")
    parser.add_argument("control", type=Path)
    parser.add_argument("--locks", choices=KINDS, default="local")
    parser.add_argument("--cache-seconds", type=float, default=0.0)
    words = parser.parse_args()
    mfusepy.FUSE(
        KINDS[words.locks](words.source, Faults(words.control)), words.mount, raw_fi=True, foreground=True,
        fsname=str(words.source), subtype="faulty", attr_timeout=words.cache_seconds,
        entry_timeout=words.cache_seconds, negative_timeout=words.cache_seconds, ac_attr_timeout=words.cache_seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
