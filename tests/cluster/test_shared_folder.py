"""A run folder on a network file system: sshfs between the two nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_nodes import require, until
from cluster_runs import losses, steps

from dnabert_rm.checkpoint.run_folder import complete_steps
from dnabert_rm.utils.errors import EXIT_USER_ERROR

pytestmark = [require("sshd", "ssh", "ssh-keygen", "sshfs", "fusermount3"), pytest.mark.timeout(600)]


@pytest.fixture
def remote(nodes, tmp_path: Path) -> Iterator[Path]:
    """A folder of the second node that the first node mounts over ssh; only the first node sees it there."""
    (tmp_path / "export").mkdir()
    mount = tmp_path / "mount"
    mount.mkdir()
    done = nodes[0].run("sshfs", f"n2:{tmp_path}/export", mount)
    if done.returncode:
        pytest.skip(f"this system allows no sshfs: {done.stderr.strip()}")
    yield mount
    nodes[0].kill(str(mount))
    nodes[0].run("fusermount3", "-u", "-z", mount)


def test_a_run_folder_on_sshfs(nodes, remote: Path, flags, local_losses, tmp_path: Path) -> None:
    """A rank is killed after a checkpoint and the run is resumed; meanwhile a second run on the folder is rejected.

    One rank, so the losses are compared with those of two ranks only up to rounding.
    """
    run, log = tmp_path / "export" / "run", tmp_path / "log.txt"
    command = ["python", "launch_scripts/pretrain.sh", *flags, "--save-every", "20", "--output", remote / "run"]
    first = nodes[0].start(log, *command)
    until(lambda: steps(run) and complete_steps(run), 240, log.read_text)
    (rank, *_) = nodes[0].pids("python launch_scripts/pretrain.sh")
    os.kill(rank, signal.SIGSTOP)  # or the run would be over before the second one has started
    second = nodes[0].run(*command)
    assert second.returncode == EXIT_USER_ERROR and "another run uses this folder" in second.stderr, second.stderr
    os.kill(rank, signal.SIGKILL)
    first.send_signal(signal.SIGCONT)  # nsenter stops together with its child
    first.wait(60)
    assert steps(run) < len(local_losses), "stopped too late for the test"
    again = nodes[0].start(log, *command)
    assert again.wait(240) == 0, log.read_text()
    assert "resuming at step" in log.read_text()
    assert losses(run) == pytest.approx(local_losses, rel=1e-4)
