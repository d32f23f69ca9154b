"""Locks between processes: exclusive while held, released when the holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnabert_rm.utils.lock import LockHeldError, PosixLock, file_lock

HOLD = {
    "file_lock": "with lock.file_lock(path): print('held', flush=True); time.sleep(9)",
    "PosixLock": "x = lock.PosixLock(path); x.acquire(); x.note_holder('me'); print('held', flush=True); time.sleep(9)",
}


def holder(path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    code = f"import time, pathlib; from dnabert_rm.utils import lock; path = pathlib.Path({str(path)!r}); {HOLD[kind]}"
    if kind == "file_lock":
        code = code.replace("; with", "\nwith")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_file_lock_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path / "l", "file_lock")
    with pytest.raises(LockHeldError), file_lock(tmp_path / "l"):
        pass
    process.kill()
    process.wait()
    with file_lock(tmp_path / "l"):
        pass


def test_posix_lock_names_its_holder_and_is_not_inherited(tmp_path: Path) -> None:
    process = holder(tmp_path / "l", "PosixLock")
    lock = PosixLock(tmp_path / "l")
    with pytest.raises(LockHeldError) as raised:
        lock.acquire()
    assert raised.value.holder == "me"
    process.kill()
    process.wait()
    start = time.monotonic()
    lock.acquire(wait=True)
    assert time.monotonic() - start < 5
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "l"):
        pass
    printed = capsys.readouterr().err
    assert printed.startswith(f"warning: {tmp_path}: can't be locked") and len(printed.splitlines()) == 1
    assert not list(tmp_path.glob("*.soft")), "no marker that a kill would leave"
    with pytest.raises(OSError, match=os.strerror(number)), file_lock(tmp_path / "l", required=True):
        pass
