"""Mounts of `faulty_file_system.py`, on this machine or on a node of the cluster tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_nodes import Node, find_program, until

_PROGRAM = Path(__file__).with_name("faulty_file_system.py")


def require_fuse() -> pytest.MarkDecorator:
    """Return a mark that skips a test unless this process may mount FUSE file systems."""
    missing = [name for name in ("fusermount3", "setpriv") if not find_program(name)]
    if os.geteuid() or not Path("/dev/fuse").exists():
        missing.append("root and /dev/fuse")
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}; see tests/packages.txt")


class FaultyMount:
    """A mount of `source` at `path`. `set` chooses the faults from now on."""

    def __init__(self, source: Path, path: Path, control: Path) -> None:
        self.source, self.path, self._control = source, path, control
        self.set()

    def set(self, **content: Any) -> None:
        """Replace all faults. Without arguments there are none.

        - `delay_ms=5` delays each operation.
        - `faults=[{"operation": "fsync", "path": REGEX, "first": 2, "times": 1, "error": "EIO"}]` fails operations.
          `first` counts the operations that match, from 1. `loses_data` also loses half of a file at its `flush`.
        - `bytes_left=1000` leaves space for 1000 bytes.
        - `stale=REGEX` makes the handles stale that are open now.
        """
        temporary = self._control.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self._control)


@contextlib.contextmanager
def faulty_mount(
    source: Path, path: Path, *, node: Node | None = None, locks: str = "shared", cache_seconds: float = 0
) -> Iterator[FaultyMount]:
    """Mount `source` at `path` during the block, on `node` or on this machine.

    `locks` is "shared" if all mounts share POSIX locks, "local" if each mount has its own, "none" if there are none.
    """
    source.mkdir(parents=True, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    mount = FaultyMount(source, path, path.with_name(f"{path.name}.control"))
    words = [
        "setpriv", "--pdeathsig=TERM", sys.executable, _PROGRAM, source, path, path.with_name(f"{path.name}.control"),
        "--locks", locks, "--cache-seconds", str(cache_seconds),
    ]  # fmt: skip
    log = path.with_name(f"{path.name}.log")
    with open(log, "w") as stream:
        process = subprocess.Popen(
            node.command(*words) if node else [*map(str, words)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    try:
        until(lambda: _is_mounted(path, node) or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        yield mount
    finally:
        mount.set()
        _run(node, "fusermount3", "-u", "-z", path)
        process.terminate()  # open files keep it running
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _is_mounted(path: Path, node: Node | None) -> bool:
    return _run(node, "mountpoint", "-q", path) == 0


def _run(node: Node | None, *words: str | Path) -> int:
    command = node.command(*words) if node else [*map(str, words)]
    return subprocess.run(command, capture_output=True, check=False).returncode
