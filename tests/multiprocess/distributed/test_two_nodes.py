"""Training on two nodes: network namespaces of this machine with separate addresses and host names.

Every launcher gives the losses of two local ranks, bit for bit. If a node dies, the other one ends too, and the run can
be resumed. DeepSpeed's launcher and mpirun are really started; for srun the test sets the variables that srun sets.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support import (
    ROOT,
    clean_environment,
    free_port,
    launcher_variables,
    random_bases,
    read_metrics,
    run_ranks,
    start_rank,
    wait_for,
    write_prepared,
)

from dnabert_rm.utils.errors import EXIT_HANG, EXIT_RANK_FAILURE

STEPS = 160
SAVE_EVERY = 40
FEW = 6
FLAGS = shlex.split(
    f"--preset tiny --steps {STEPS} --global-batch 8 --window 66 --log-every 1 --save-every {SAVE_EVERY} "
    "--model.num_layers 1 --model.hidden_size 64 --train.threads_per_rank 1"
)
END_SECONDS = 60
"""Longest time until a node ends after the other one has died; normally a few seconds, but the machine may be busy."""


@dataclass(frozen=True)
class Node:
    """A network namespace with its address and interface."""

    name: str
    address: str
    interface: str

    def start(self, log: Path, *command: str | Path, **variables: str) -> subprocess.Popen:
        """Start a command on the node; it prints to `log`."""
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "bash", "-c", 'hostname "$0" && exec "$@"']
        with open(log, "w") as stream:
            return subprocess.Popen(
                [*enter, self.name, *map(str, command)],
                cwd=ROOT,
                env={**clean_environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def kill_all(self) -> None:
        """Kill every process on the node; several times, because they may start others."""
        for _ in range(3):
            found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
            for process in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with a virtual cable between them; removed afterwards with all their processes."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("network namespaces need root, and the programs ip (iproute2), unshare and hostname")
    tag, net = os.getpid() % 100000, f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    pair = tuple(
        Node(f"dnabert-rm{tag}{end}", f"{net}.{number}", f"rm{tag}{end}") for number, end in ((1, "a"), (2, "b"))
    )
    try:
        try:
            for node in pair:
                ip("netns", "add", node.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system allows no network namespaces: {error.stderr.strip()}")
        first_end, second_end = (f"{node.interface} netns {node.name}".split() for node in pair)
        ip("link", "add", *first_end, "type", "veth", "peer", "name", *second_end)
        for node in pair:
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            for device in ("lo", node.interface):
                ip("-n", node.name, "link", "set", device, "up")
        yield pair
    finally:
        for node in pair:
            node.kill_all()
            subprocess.run(["ip", "netns", "del", node.name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return [*FLAGS, "--data", str(folder)]


@pytest.fixture(scope="module")
def local_losses(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of a run on two local ranks."""
    run = tmp_path_factory.mktemp("local") / "run"
    run_ranks(2, *flags, "--output", run)
    return losses(run)


def losses(run: Path) -> list[float]:
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def start_deepspeed(nodes: tuple[Node, Node], tmp: Path, words: list[str]) -> list[subprocess.Popen]:
    """Start `deepspeed --hostfile … --no_ssh` on each node."""
    (tmp / "hostfile").write_text("".join(f"{node.address} slots=1\n" for node in nodes))
    port = str(free_port())
    return [
        node.start(
            tmp / f"{rank}.txt", "deepspeed", "--hostfile", tmp / "hostfile", "--no_ssh", "--node_rank", str(rank),
            "--master_addr", nodes[0].address, "--master_port", port, "launch_scripts/pretrain.sh", *words,
            GLOO_SOCKET_IFNAME=node.interface,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip


def printed(tmp: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(tmp.glob("*.txt")))


def test_a_run_resumes_after_a_node_dies(nodes, flags, local_losses, tmp_path: Path) -> None:
    """All processes of the second node are killed after the first checkpoint of a run under DeepSpeed's launcher.

    The run is resumed under another launcher, and its losses are those of an uninterrupted run.
    """
    run = tmp_path / "run"
    words = [*flags, "--output", str(run)]
    first, second = start_deepspeed(nodes, tmp_path, words)
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / f"step_{SAVE_EVERY:08d}").exists():
        assert time.monotonic() < deadline and first.poll() is None, printed(tmp_path)
        time.sleep(0.02)
    nodes[1].kill_all()
    assert second.wait(10) != 0
    assert first.wait(END_SECONDS) == EXIT_RANK_FAILURE, printed(tmp_path)
    lines = [line for line in (tmp_path / "0.txt").read_text().splitlines() if "another rank failed" in line]
    assert len(lines) == 1 and "rank 0: " in lines[0] and "run the same command to resume" in lines[0]
    assert "Traceback" not in (tmp_path / "0.txt").read_text()
    before = losses(run)
    assert SAVE_EVERY <= len(before) < STEPS, "killed too late for the test"
    assert before == local_losses[: len(before)]
    assert wait_for(start_as_srun(nodes, tmp_path, words)) == [0, 0], printed(tmp_path)
    assert "resuming at step" in (tmp_path / "0.txt").read_text()
    assert losses(run) == local_losses


def test_mpirun_over_both_nodes(nodes, flags, local_losses, tmp_path: Path) -> None:
    """`launch_scripts/pretrain_mpi.sh` on the first node; the ranks agree on rank 0's address over MPI.

    A script replaces ssh and starts mpirun's daemon on the node with the given address.
    """
    cases = "\n".join(f"    {node.address}) name={node.name} ;;" for node in nodes)
    agent = tmp_path / "agent.sh"
    agent.write_text(
        f'#!/bin/bash\ncase "$1" in\n{cases}\nesac\nshift\n'
        'exec ip netns exec "$name" unshare --uts bash -c "hostname $name && $*"\n'
    )
    agent.chmod(0o755)
    (tmp_path / "hosts").write_text("".join(f"{node.address} slots=1\n" for node in nodes))
    words = [*flags, "--output", tmp_path / "run", "--stop-after", str(FEW)]
    mpirun = nodes[0].start(
        tmp_path / "0.txt", "bash", "launch_scripts/pretrain_mpi.sh", "-n", "2", "--hostfile", tmp_path / "hosts",
        "--prtemca", "plm_ssh_agent", agent, "--", *words,
    )  # fmt: skip
    assert mpirun.wait(240) == 0, printed(tmp_path)
    assert losses(tmp_path / "run") == local_losses[:FEW]


def start_as_srun(nodes: tuple[Node, Node], tmp: Path, words: list[str]) -> list:
    """Start one task on each node with the variables of srun, and no others by which ranks could find each other."""
    prefix = nodes[0].address.rpartition(".")[0]
    shared = {
        "SLURM_JOB_ID": free_port(),
        "SLURM_STEP_ID": 0,
        "SLURM_NTASKS": 2,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NUM_NODES": 2,
        "SLURM_NTASKS_PER_NODE": 1,
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_LOCALID": 0,
        "SLURM_STEP_NODELIST": f"{prefix}.[1-2]",
    }
    return [
        start_rank({**shared, "SLURM_PROCID": rank, "SLURM_NODEID": rank}, words, tmp / f"{rank}.txt", node.name)
        for rank, node in enumerate(nodes)
    ]


def test_srun_on_both_nodes(nodes, flags, local_losses, tmp_path: Path) -> None:
    assert not launcher_variables() & {"RANK", "MASTER_ADDR"} & set(os.environ)
    words = [*flags, "--output", tmp_path / "run", "--stop-after", str(FEW)]
    assert wait_for(start_as_srun(nodes, tmp_path, words)) == [0, 0], printed(tmp_path)
    assert losses(tmp_path / "run") == local_losses[:FEW]


def test_a_silent_network_ends_both_nodes_with_stacks(nodes, flags, tmp_path: Path) -> None:
    """Connections stay open, but no data arrive: the watchdog ends the ranks of both nodes, and both write stacks."""
    run = tmp_path / "run"
    words = [*flags, "--output", run, "--train.hang_timeout_seconds", "4"]
    ranks = start_as_srun(nodes, tmp_path, words)
    try:
        deadline = time.monotonic() + 100
        while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < FEW:
            assert time.monotonic() < deadline, printed(tmp_path)
            time.sleep(0.02)
        ip("-n", nodes[0].name, "link", "set", nodes[0].interface, "down")
        assert wait_for(ranks, END_SECONDS) == [EXIT_HANG] * 2, printed(tmp_path)
    finally:
        ip("-n", nodes[0].name, "link", "set", nodes[0].interface, "up")
    assert len(losses(run)) < STEPS, "too late for the test"
    assert len(list((run / "hangs").glob("*_rank_?.txt"))) == 2
