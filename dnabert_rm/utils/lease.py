"""Lease on a folder: a file that its holder changes every few seconds, for nodes that do not share file locks.

On sshfs, and on NFS or Lustre with some mount options, each node has its own locks. Then two nodes can lock the same
file. A lease needs only files that all nodes see. It complements a lock, which the system releases at once if its
process ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dnabert_rm.utils.lock import LockHeldError

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
"""A lease has expired if its file has not changed for this time. Only time in which the file system responds counts.

Only this node's clock is used, as clocks differ.
"""
SETTLE_SECONDS = 7.0
"""Wait after taking an expired lease. It is longer than a heartbeat, so a holder that was only suspended sees the loss.

Two nodes that take the same expired lease see within this time which of them wrote last.
"""
_RECORD_BYTES = 512
_NUM_ATTEMPTS = 3
_EXISTS = (errno.EEXIST, errno.EPERM, errno.ESTALE)
"""Errors for a file that exists: sshfs reports EPERM, and NFS reports ESTALE for one that has just been deleted."""


@dataclass(frozen=True)
class LeaseRecord:
    """Content of a lease's file."""

    token: str
    """A random string for each lease."""
    node: str
    """Host name and boot of the holder's node."""
    holder: str
    """Description of the holder, for messages."""
    beat: int = 0
    """Number of heartbeats."""

    def to_bytes(self) -> bytes:
        """Return the record with a fixed size, so that a size that a node has cached stays right."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES)


_UNKNOWN = LeaseRecord("", "", "a process that has left no record")


def node_identity() -> str:
    """Return a string that identifies this node until it is booted again."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


class Lease:
    """A lease. A thread renews it until `release`, and calls `on_loss` if another process has taken it.

    The file is never replaced by a rename while it is held, since nodes may cache the names in a folder.
    """

    def __init__(self, path: Path, holder: str, on_loss: Callable[[str], None]) -> None:
        """Name the file of the lease. `on_loss` gets the description of the new holder."""
        self.path = path
        self._record = LeaseRecord(uuid.uuid4().hex, node_identity(), holder)
        self._on_loss = on_loss
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self, *, has_lock: bool) -> None:
        """Take the lease, and start to renew it.

        `has_lock` is whether this process also has a lock for the folder. A holder on this node would have it too, so
        its lease is expired. For other leases, the call waits up to `EXPIRY_SECONDS` for a heartbeat.

        Raises `LockHeldError` if another process renews the lease, `OSError` if the file can't be written.
        """
        for _ in range(_NUM_ATTEMPTS):
            try:
                self._create()
                break
            except OSError as error:
                if error.errno not in _EXISTS:
                    raise
            if found := read_lease(self.path):
                if self._replace(found, has_lock and found.node == self._record.node):
                    break
            else:
                time.sleep(min(1.0, SETTLE_SECONDS))  # being written, just released, or only in a node's cache
        else:
            if not self._replace(_UNKNOWN, False):
                self._create()
        self._thread.start()

    def release(self) -> None:
        """Stop the renewal and delete the file, unless another process has taken the lease."""
        self._released.set()
        if self._thread.ident:
            self._thread.join(HEARTBEAT_SECONDS)
        with contextlib.suppress(OSError):
            if (found := read_lease(self.path)) and found.token == self._record.token:
                self.path.unlink()

    def _create(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        _write(descriptor, self._record)

    def _replace(self, found: LeaseRecord, is_expired: bool) -> bool:
        """Take the lease `found` of another process, after it has expired. Return False if it is released first."""
        if not is_expired and not self._wait_for_expiry(found):
            return False
        _write(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC), self._record)
        if not is_expired:
            time.sleep(SETTLE_SECONDS)
            if (now := read_lease(self.path)) and now.token != self._record.token:
                raise LockHeldError(self.path, now.holder)
        return True

    def _wait_for_expiry(self, found: LeaseRecord) -> bool:
        """Wait until the file has not changed for `EXPIRY_SECONDS`. Return False if it has been deleted.

        Only time in which the file system answers counts. While a server is away, the holder can't renew its lease.
        """
        print(
            f"{self.path.parent}: was last used by {found.holder}; waiting up to {EXPIRY_SECONDS:g} s to see whether "
            "that process still runs",
            file=sys.stderr,
            flush=True,
        )
        unchanged, last = 0.0, time.monotonic()
        while unchanged < EXPIRY_SECONDS:
            time.sleep(min(1.0, EXPIRY_SECONDS / 10))
            try:
                content = self.path.read_bytes()
            except FileNotFoundError:
                return False
            except OSError:
                unchanged, last = 0.0, time.monotonic()
                continue
            now = _parse(content)
            if now is not None and now != found:
                raise LockHeldError(self.path, now.holder)
            waited, last = time.monotonic() - last, time.monotonic()
            unchanged = 0.0 if waited > EXPIRY_SECONDS / 3 else unchanged + waited
        return True

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            # A file system that does not answer is reported by what the process writes there.
            with contextlib.suppress(OSError):
                found = read_lease(self.path)
                if found is not None and found.token != self._record.token:
                    self._on_loss(found.holder)
                    return
                self._record = replace(self._record, beat=self._record.beat + 1)
                _write(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC), self._record)


def read_lease(path: Path) -> LeaseRecord | None:
    """Return the record in a lease's file, or None if the file is missing or can't be read."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> LeaseRecord | None:
    try:
        return LeaseRecord(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, record: LeaseRecord) -> None:
    """Write a record over the one before with a single call, and close the file."""
    try:
        os.pwrite(descriptor, record.to_bytes(), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
