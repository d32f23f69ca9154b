"""A lease on a folder, without any lock, as between nodes that do not share locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnabert_rm.utils import lease
from dnabert_rm.utils.lease import Lease, LeaseRecord, read_lease
from dnabert_rm.utils.lock import LockHeldError

_HOLDER = """
import os, sys, time
from pathlib import Path
from dnabert_rm.utils import lease
lease.HEARTBEAT_SECONDS, lease.EXPIRY_SECONDS, lease.SETTLE_SECONDS = map(float, sys.argv[3:])
os.fsync = lambda descriptor: None  # a busy disk takes longer than the times of this test
def lost(holder):
    print("lost to " + holder, flush=True)
    os._exit(3)
held = lease.Lease(Path(sys.argv[1]), sys.argv[2], lost)
try:
    held.acquire(has_lock=False)
except lease.LockHeldError as error:
    sys.exit("held by " + error.holder)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that a busy machine keeps: a living holder renews its lease forty times before it could expire."""
    for name, seconds in TIMES.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(lease.os, "fsync", lambda _: None)


TIMES = {"HEARTBEAT": 0.1, "EXPIRY": 4.0, "SETTLE": 1.0}


@pytest.fixture
def start() -> Iterator:
    """Function that starts another process that takes the lease and keeps it."""
    processes: list[subprocess.Popen] = []

    def started(path: Path, name: str) -> subprocess.Popen:
        words = [sys.executable, "-c", _HOLDER, str(path), name, *map(str, TIMES.values())]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def take(path: Path, name: str = "me", *, has_lock: bool = False) -> Lease:
    """Take a lease; its loss fails the test at its end, through `read_lease`."""
    taken = Lease(path, name, lambda _: None)
    taken.acquire(has_lock=has_lock)
    return taken


def test_a_held_lease_is_refused_and_a_released_one_is_free(start, tmp_path: Path) -> None:
    other = start(tmp_path / "l", "node 7")
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LockHeldError) as raised:
        take(tmp_path / "l")
    assert raised.value.holder == "node 7"
    other.kill()
    other.wait()
    before = time.monotonic()
    mine = take(tmp_path / "l")  # expired
    assert time.monotonic() - before >= TIMES["EXPIRY"]
    mine.release()
    assert not (tmp_path / "l").exists()
    before = time.monotonic()
    take(tmp_path / "l").release()
    assert time.monotonic() - before < TIMES["EXPIRY"]


def test_a_crash_on_this_node_costs_no_time_if_there_is_a_lock(start, tmp_path: Path) -> None:
    other = start(tmp_path / "l", "node 7")
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.wait()
    before = time.monotonic()
    take(tmp_path / "l", has_lock=True).release()
    assert time.monotonic() - before < TIMES["EXPIRY"]


def test_the_lock_of_another_node_is_no_proof(start, tmp_path: Path) -> None:
    other = start(tmp_path / "l", "node 7")
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.wait()
    record = json.loads((tmp_path / "l").read_text())
    (tmp_path / "l").write_text(json.dumps(record | {"node": "node7 boot"}))
    before = time.monotonic()
    take(tmp_path / "l", has_lock=True).release()
    assert time.monotonic() - before >= TIMES["EXPIRY"]


def test_a_suspended_holder_learns_that_it_has_lost_the_lease(start, tmp_path: Path) -> None:
    other = start(tmp_path / "l", "node 7")
    assert other.stdout.readline() == "held\n"
    os.kill(other.pid, signal.SIGSTOP)
    mine = take(tmp_path / "l", "node 8")
    os.kill(other.pid, signal.SIGCONT)
    assert other.wait(60) == 3 and other.stdout.read() == "lost to node 8\n"
    found = read_lease(tmp_path / "l")
    assert found and found.holder == "node 8"
    mine.release()


def test_only_one_of_several_takes_an_expired_lease(start, tmp_path: Path) -> None:
    for name, has_expired in (("fresh", False), ("expired", True)):
        path = tmp_path / name
        if has_expired:
            other = start(path, "node 7")
            assert other.stdout.readline() == "held\n"
            other.kill()
            other.wait()
        several = [start(path, f"node {number}") for number in range(4)]
        deadline = time.monotonic() + 120
        while sum(process.poll() is None for process in several) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        (holder,) = [process for process in several if process.poll() is None]
        assert holder.stdout.readline() == "held\n"
        losers = [process for process in several if process is not holder]
        assert all("held by node " in process.stderr.read() for process in losers)


def test_an_empty_file_that_a_killed_process_left_expires(tmp_path: Path) -> None:
    (tmp_path / "l").touch()
    take(tmp_path / "l").release()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "missing" / "l")


def test_the_last_of_two_that_take_an_expired_lease_at_once_has_it(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(LeaseRecord("old", "node", "node 7").to_bytes())

    def take_too() -> None:
        while (found := read_lease(path)) is None or found.holder != "me":
            time.sleep(0.01)
        path.write_bytes(LeaseRecord("new", "node", "node 9").to_bytes())

    other = threading.Thread(target=take_too, daemon=True)
    other.start()
    with pytest.raises(LockHeldError) as raised:
        take(path)
    assert raised.value.holder == "node 9"


def test_a_lease_that_is_released_during_the_wait_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(LeaseRecord("old", "node", "node 7").to_bytes())
    threading.Timer(1.0, path.unlink).start()
    mine = take(path)
    found = read_lease(path)
    assert found and found.holder == "me"
    mine.release()


def test_time_without_an_answer_of_the_file_system_does_not_count(tmp_path: Path, monkeypatch) -> None:
    """The holder can't renew its lease either, while the server is away."""
    path = tmp_path / "l"
    other = take(path, "node 7")
    other._released.set()  # its thread is stopped, as if its writes got no answer
    other._thread.join()
    real, calls = Path.read_bytes, []

    def read_bytes(self: Path) -> bytes:
        if self == path:
            calls.append(0)
            if len(calls) == 3:
                time.sleep(1.5 * TIMES["EXPIRY"])
            elif 3 < len(calls) < 6:
                raise TimeoutError
            elif len(calls) == 6:  # the server is back, and the holder renews its lease
                path.write_bytes(LeaseRecord(other._record.token, "node", "node 7", 5).to_bytes())
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(LockHeldError) as raised:
        take(path)
    assert raised.value.holder == "node 7"
