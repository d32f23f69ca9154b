"""Runs that can't start at their port or address end within seconds, and the error line says what to set.

Two runs on one machine start at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, free_port, random_bases, read_metrics, start_rank, wait_for, write_prepared

FLAGS = shlex.split(
    "--preset tiny --global-batch 4 --window 66 --log-every 1 --model.num_layers 1 --model.hidden_size 64 --workers 0"
)
NO_NAME = "no-such-node.invalid"
UNUSED_ADDRESS = "192.0.2.77"  # TEST-NET-1, which no machine uses
SCRIPT = "launch_scripts/pretrain.sh"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)]], k=4)
    # The fork server imports the libraries before it starts the first rank, and the tests measure time.
    assert wait_for([start_rank({}, ["--help"], folder.parent / "help.txt")], 240) == [0]
    return [*FLAGS, "--data", str(folder)]


def start(tmp: Path, flags: list[str], variables: list[dict[str, object]], seconds: float = 15) -> list[list[str]]:
    """Start a rank with each of `variables`. All must end with code 2 in time. Return the lines that each prints."""
    words = [*flags, "--steps", "2", "--output", tmp / "run"]
    begin = time.monotonic()
    ranks = [start_rank(own, words, tmp / f"{rank}.txt") for rank, own in enumerate(variables)]
    codes = wait_for(ranks, 60)
    printed = [(tmp / f"{rank}.txt").read_text().splitlines() for rank in range(len(variables))]
    assert codes == [2] * len(codes), printed
    assert time.monotonic() - begin < seconds
    assert not (tmp / "run").exists()
    return printed


def explicit(rank: int, address: str) -> dict[str, object]:
    return {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": free_port()}


def slurm(rank: int, nodes: str, num_nodes: int) -> dict[str, object]:
    return {
        "SLURM_JOB_ID": 7,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NUM_NODES": num_nodes,
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)" if num_nodes == 2 else "2",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": 0 if num_nodes == 2 else rank,
        "SLURM_NODEID": rank if num_nodes == 2 else 0,
    }


def test_a_name_that_cannot_be_resolved_is_reported_once_per_node(tmp_path: Path, flags: list[str]) -> None:
    first, second = start(tmp_path, flags, [explicit(rank, NO_NAME) for rank in range(2)])
    (line,) = first
    assert line.startswith(f"pretrain.sh: error: rank 0 on {socket.gethostname()}: the host name {NO_NAME} ")
    assert "can't be resolved" in line and "set MASTER_ADDR=ADDRESS" in line
    assert second == []


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_a_node_of_slurm_that_cannot_be_resolved_is_reported(tmp_path: Path, flags: list[str], num_nodes: int) -> None:
    nodes = NO_NAME if num_nodes == 1 else "no-such-node[7-8].invalid"
    printed = start(tmp_path, flags, [slurm(rank, nodes, num_nodes) for rank in range(2)])
    lines = [line for rank in printed for line in rank]
    assert len(lines) == num_nodes
    for rank, line in enumerate(lines):
        name = NO_NAME if num_nodes == 1 else "no-such-node7.invalid"
        assert f"rank {rank} on {socket.gethostname()}: the host name {name} of rank 0's node" in line
        assert "set MASTER_ADDR=ADDRESS for all ranks" in line


def test_an_address_of_another_node_is_reported(tmp_path: Path, flags: list[str]) -> None:
    """Rank 0 alone: the others can't know, and their launcher ends them."""
    ((line,),) = start(tmp_path, flags, [explicit(0, UNUSED_ADDRESS)])
    assert f"{UNUSED_ADDRESS} ({UNUSED_ADDRESS}) is not an address of this node, on which rank 0 runs" in line
    assert "set MASTER_ADDR=ADDRESS" in line


def test_a_rank_at_the_port_of_another_program_ends(tmp_path: Path, flags: list[str]) -> None:
    """The program accepts the connection, and keeps it open without an answer. Torch would wait forever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables = explicit(1, "127.0.0.1") | {"MASTER_PORT": listener.getsockname()[1]}
        words = [*flags, "--steps", "2", "--output", tmp_path / "run", "--train.start_timeout_seconds", "2"]
        rank = start_rank(variables, words, tmp_path / "1.txt")
        listener.settimeout(60)
        connection, _ = listener.accept()
        with connection:
            codes = wait_for([rank], 40)
    printed = (tmp_path / "1.txt").read_text()
    assert codes == [2], printed
    (line,) = printed.splitlines()[-1:]
    assert f"what listens at 127.0.0.1:{variables['MASTER_PORT']} did not answer within 14 s" in line
    assert "MASTER_PORT=PORT" in line


def launch(command: list[str], flags: list[str], run: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run two steps with a launcher's command."""
    return subprocess.run(
        [*command, *flags, "--steps", "2", "--output", str(run)],
        cwd=ROOT,
        env={**clean_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def port_error(done: subprocess.CompletedProcess[str], port: str, advice: str) -> str:
    """Check the error of a run whose port is in use. Return the port that it names, where `advice` has `(N)`."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"port {port} is in use on {socket.gethostname()}; " in line
    found = re.search(re.escape(advice).replace(r"\(N\)", r"(\d+)"), line)
    assert found, line
    return found[1]


def processes_of(run: Path) -> list[int]:
    """Return the processes whose command line names the run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(run) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def signal_all(run: Path, number: signal.Signals) -> None:
    for process in processes_of(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@pytest.fixture(scope="module")
def port_of_first_run(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Iterator[str]:
    """The port of a run that bash has started, with MASTER_PORT set.

    The run keeps its port, but is suspended to leave the cores free. At the end it continues, and stops on request.
    """
    folder = tmp_path_factory.mktemp("first")
    port, run, printed = str(free_port()), folder / "run", folder / "printed.txt"
    command = ["bash", SCRIPT, *flags, "--steps", "1000000", "--output", str(run)]
    environment = {**clean_environment(), "DEEPSPEED_ARGS": "--num_gpus 1", "MASTER_PORT": port}
    with open(printed, "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 500
        while not (run / "metrics.jsonl").exists():
            assert time.monotonic() < deadline and process.poll() is None, printed.read_text()
            time.sleep(0.1)
        signal_all(run, signal.SIGSTOP)
        yield port
        signal_all(run, signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, printed.read_text()
    finally:
        signal_all(run, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(900)
@pytest.mark.timeout(1200)
def test_a_second_run_by_bash_finds_a_port(port_of_first_run: str, tmp_path: Path, flags: list[str]) -> None:
    done = launch(["bash", SCRIPT], flags, tmp_path / "run", DEEPSPEED_ARGS="--num_gpus 2")
    assert done.returncode == 0 and len(read_metrics(tmp_path / "run")) == 2, done.stderr


def test_a_port_in_deepspeed_args_takes_precedence(port_of_first_run: str, tmp_path: Path, flags: list[str]) -> None:
    """It is in use, and the error line names where to change it."""
    arguments = f"--num_gpus 1 --master_port {port_of_first_run}"
    variables = {"DEEPSPEED_ARGS": arguments, "MASTER_PORT": str(free_port())}
    done = launch(["bash", SCRIPT], flags, tmp_path / "run", **variables)
    assert port_error(done, port_of_first_run, "add --master_port (N) to DEEPSPEED_ARGS")


@pytest.mark.timeout(1200)
def test_a_second_run_by_deepspeed_names_a_port(port_of_first_run: str, tmp_path: Path, flags: list[str]) -> None:
    command = ["deepspeed", "--num_gpus", "1", "--master_port"]
    done = launch([*command, port_of_first_run, SCRIPT], flags, tmp_path / "run")
    free = port_error(done, port_of_first_run, "start with `deepspeed --master_port (N) launch_scripts/pretrain.sh …`")
    done = launch([*command, free, SCRIPT], flags, tmp_path / "run")
    assert done.returncode == 0 and len(read_metrics(tmp_path / "run")) == 2, done.stderr


def test_several_nodes_keep_the_port_that_all_launchers_know(tmp_path: Path, flags: list[str]) -> None:
    """Only the launcher's arguments are recorded here, by a program in its place."""
    (tmp_path / "deepspeed").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "deepspeed").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{clean_environment()['PATH']}"

    def arguments(**variables: str) -> str:
        done = launch(["bash", SCRIPT], flags, tmp_path / "run", **{"PATH": path, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.partition(" /")[0]

    assert re.fullmatch(r"--log_level warning --master_port \d+", arguments())
    for words in ("--hostfile hosts --no_ssh", "--num_gpus 1 -H hosts", "--hostfile=hosts"):
        assert arguments(DEEPSPEED_ARGS=words) == f"--log_level warning {words}"
        with_port = arguments(DEEPSPEED_ARGS=words, MASTER_PORT="4321")
        assert with_port == f"--log_level warning --master_port 4321 {words}"


def test_a_port_that_is_no_number_is_reported(tmp_path: Path, flags: list[str]) -> None:
    done = launch(["bash", SCRIPT], flags, tmp_path / "run", MASTER_PORT="one")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "error: MASTER_PORT is 'one', but must be a number" in line
