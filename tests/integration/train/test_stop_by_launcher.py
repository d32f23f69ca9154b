"""Stop requests through the launchers `bash pretrain.sh` and `deepspeed pretrain.sh`; tests/cluster has Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, free_port, random_bases, write_prepared

from dnabert_rm.checkpoint.run_folder import complete_steps
from dnabert_rm.utils.errors import EXIT_STOPPED, EXIT_USER_ERROR

FLAGS = ["--preset", "tiny", "--steps", "100000", "--global-batch", "8", "--window", "66", "--log-every", "1",
         "--model.num_layers", "1", "--model.hidden_size", "64"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)]], k=4)
    return folder


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait for a condition; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.05)


def steps(run: Path) -> int:
    """Return the number of steps in metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def processes_of(run: Path) -> list[int]:
    """Return the processes whose command line names the run folder: launchers, ranks, loader workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(run) in words:
                found.append(int(entry.name))
    return found


class Started:
    """A running command; all its processes are killed at the end of the block."""

    def __init__(self, run: Path, command: list[str], **variables: str) -> None:
        self.run, self.output = run, run.parent / "printed.txt"
        environment = {**clean_environment(), **variables}
        with open(self.output, "w") as stream:
            # Tests started in the background ignore Ctrl-C, and a shell can't trap a signal that it ignores.
            self.process = subprocess.Popen(
                [*command, "--output", str(run)],
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=stream,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in processes_of(self.run):
            os.kill(process, signal.SIGKILL)

    def check_end(self) -> None:
        """Check that no process is left and that the last logged step has a checkpoint."""
        until(lambda: not processes_of(self.run), 30)
        assert complete_steps(self.run) == [steps(self.run)], self.output.read_text()

    def check_second_ctrl_c(self) -> None:
        """Suspend the ranks, so that they can't obey the first Ctrl-C, and check that the second one ends all."""
        for process in processes_of(self.run):
            if process != self.process.pid:
                os.kill(process, signal.SIGSTOP)
        self.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert self.process.poll() is None
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(10) == 130
        until(lambda: not processes_of(self.run), 10)


def test_bash_forwards_signals_as_a_stop_and_exits_with_75(prepared: Path, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", f"--num_gpus 2 --master_port {free_port()}"
    command = ["bash", "launch_scripts/pretrain.sh", *FLAGS, "--data", str(prepared)]
    with Started(run, command, DEEPSPEED_ARGS=arguments, TMPDIR=str(tmp_path)) as started:
        until(lambda: steps(run) > 3)
        started.process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(180) == EXIT_STOPPED, started.output.read_text()
        started.check_end()
    assert not list(tmp_path.glob("tmp.*"))


def test_pretrain_gpus_starts_ranks_and_forwards_signals(prepared: Path, tmp_path: Path) -> None:
    """`dnabert-rm pretrain --gpus 2`, which needs no checkout: a stop saves and exits with 75, and the run resumes."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dnabert_rm", "pretrain", "--gpus", "2", *FLAGS, "--data", str(prepared)]
    with Started(run, command, TMPDIR=str(tmp_path)) as started:
        until(lambda: steps(run) > 3)
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(180) == EXIT_STOPPED, started.output.read_text()
        started.check_end()
    before = steps(run)
    with Started(run, [*command, "--stop-after", str(before + 2)]) as started:
        assert started.process.wait(180) == 0, started.output.read_text()
        assert "2 ranks" in started.output.read_text() and steps(run) == before + 2
    with Started(run, command) as started:
        until(lambda: steps(run) > before + 2)
        started.check_second_ctrl_c()


def test_pretrain_gpus_reports_a_mistake_before_any_rank_starts(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnabert_rm", "pretrain", "--gpus", "3", *FLAGS, "--data", str(prepared)]
    for variables, message in (
        ({}, "does not divide into 3 ranks x 1 accumulation steps; choose a multiple of 3"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "--gpus: another launcher has started this rank; omit --gpus"),
    ):
        words = [*command, "--output", str(tmp_path / "run"), *(["--global-batch", "9"] if variables else [])]
        environment = {**clean_environment(), **variables}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == EXIT_USER_ERROR and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_second_ctrl_c_ends_bash_and_all_ranks_at_once(prepared: Path, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", f"--num_gpus 1 --master_port {free_port()}"
    command = ["bash", "launch_scripts/pretrain.sh", *FLAGS, "--data", str(prepared)]
    with Started(run, command, DEEPSPEED_ARGS=arguments) as started:
        until(lambda: steps(run) > 3)
        started.check_second_ctrl_c()


def test_ranks_save_and_end_when_the_deepspeed_command_is_killed(prepared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launch_scripts/pretrain.sh"]
    with Started(run, [*command, *FLAGS, "--data", str(prepared)]) as started:
        until(lambda: steps(run) > 3)
        started.process.send_signal(signal.SIGUSR1)
        assert started.process.wait(10) == -signal.SIGUSR1
        started.check_end()
