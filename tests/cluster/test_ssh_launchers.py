"""Launchers that log in to the other node over ssh: DeepSpeed's with pdsh, and Open MPI's mpirun."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cluster_nodes import Node, require, until
from cluster_runs import ENDLESS, FEW, losses, steps

from dnabert_rm.checkpoint.run_folder import complete_steps
from dnabert_rm.utils.errors import EXIT_STOPPED

pytestmark = [require("sshd", "ssh", "ssh-keygen", "pdsh"), pytest.mark.timeout(900)]


@pytest.fixture
def hosts(nodes, tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    return path


def until_steps(run: Path, number: int, log: Path) -> None:
    until(lambda: steps(run) >= number, 240, log.read_text)


def no_ranks_left(nodes: tuple[Node, Node], log: Path) -> None:
    until(lambda: not any(node.pids("launch_scripts/pretrain.sh") for node in nodes), 40, log.read_text)


def test_deepspeed_over_pdsh(nodes, hosts, flags, local_losses, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    words = [*flags, "--output", str(tmp_path / "run"), "--stop-after", str(FEW)]
    started = nodes[0].start(log, "deepspeed", "--hostfile", hosts, "launch_scripts/pretrain.sh", *words)
    assert started.wait(240) == 0, log.read_text()
    assert losses(tmp_path / "run") == local_losses[:FEW]


def test_a_signal_to_bash_stops_the_ranks_of_both_nodes(nodes, hosts, flags, tmp_path: Path) -> None:
    log, run = tmp_path / "log.txt", tmp_path / "run"
    started = nodes[0].start(
        log,
        "bash",
        "launch_scripts/pretrain.sh",
        *flags,
        *ENDLESS,
        "--output",
        run,
        DEEPSPEED_ARGS=f"--hostfile {hosts}",
    )
    until_steps(run, 4, log)
    # nsenter waits for the command in the node, so the signal has to go to the shell itself.
    os.kill(nodes[0].pids("bash launch_scripts/pretrain.sh")[0], signal.SIGUSR1)
    assert started.wait(120) == EXIT_STOPPED, log.read_text()
    no_ranks_left(nodes, log)
    assert complete_steps(run) == [len(losses(run))], log.read_text()


def test_deepspeed_over_pdsh_ends_if_a_remote_rank_is_killed(nodes, hosts, flags, tmp_path: Path) -> None:
    log, run = tmp_path / "log.txt", tmp_path / "run"
    started = nodes[0].start(
        log, "deepspeed", "--hostfile", hosts, "launch_scripts/pretrain.sh", *flags, *ENDLESS, "--output", run
    )
    until_steps(run, 4, log)
    # The launcher's command line contains that of the rank, and it has a lower number.
    ranks = [pid for pid in nodes[1].pids("launch_scripts/pretrain.sh --local_rank=0") if not _is_launcher(pid)]
    os.kill(ranks[0], signal.SIGKILL)
    assert started.wait(120) not in (0, EXIT_STOPPED), log.read_text()
    no_ranks_left(nodes, log)
    assert sum("another rank failed" in line for line in log.read_text().splitlines()) == 1, log.read_text()


def _is_launcher(pid: int) -> bool:
    return b"deepspeed.launcher.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()


@require("mpirun")
def test_mpirun_over_ssh(nodes, hosts, flags, local_losses, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    words = [*flags, "--output", str(tmp_path / "run"), "--stop-after", str(FEW)]
    started = nodes[0].start(
        log, "bash", "launch_scripts/pretrain_mpi.sh", "-n", "2", "--hostfile", hosts, "--", *words
    )
    assert started.wait(240) == 0, log.read_text()
    assert losses(tmp_path / "run") == local_losses[:FEW]
