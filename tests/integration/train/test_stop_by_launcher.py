"""Stop requests through the launchers: `bash pretrain.sh`, `deepspeed pretrain.sh` and the Slurm script.

Slurm is not installed here. Minimal replacements of `srun` and `scontrol` start the command once per task, with the
task's variables, and record a requeue. The Slurm script and the ranks are the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, free_port, random_bases, write_prepared

from dnabert_rm.checkpoint.run_folder import complete_steps
from dnabert_rm.utils.errors import EXIT_STOPPED

FLAGS = ["--preset", "tiny", "--steps", "100000", "--global-batch", "8", "--window", "66", "--log-every", "1",
         "--model.num_layers", "1", "--model.hidden_size", "64"]  # fmt: skip

SRUN = """#!/usr/bin/env bash
# srun --wait=60 COMMAND …: two tasks on this machine; signals go to both; ends with the highest code.
shift
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=127.0.0.1
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
echo ${tasks[@]} >"$STATE/tasks"
highest=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do wait "$task"; done
    wait "$task"; code=$?
    [ $code -le $highest ] || highest=$code
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
# scontrol requeue JOB
echo "$2" >>"$STATE/requeued"
"""


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


def test_a_second_ctrl_c_ends_bash_and_all_ranks_at_once(prepared: Path, tmp_path: Path) -> None:
    """The ranks are suspended, so they can't obey the first one."""
    run, arguments = tmp_path / "run", f"--num_gpus 1 --master_port {free_port()}"
    command = ["bash", "launch_scripts/pretrain.sh", *FLAGS, "--data", str(prepared)]
    with Started(run, command, DEEPSPEED_ARGS=arguments) as started:
        until(lambda: steps(run) > 3)
        for process in processes_of(run):
            if process != started.process.pid:
                os.kill(process, signal.SIGSTOP)
        started.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert started.process.poll() is None
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(10) == 130
        until(lambda: not processes_of(run), 10)


def test_ranks_save_and_end_when_the_deepspeed_command_is_killed(prepared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launch_scripts/pretrain.sh"]
    with Started(run, [*command, *FLAGS, "--data", str(prepared)]) as started:
        until(lambda: steps(run) > 3)
        started.process.send_signal(signal.SIGUSR1)
        assert started.process.wait(10) == -signal.SIGUSR1
        started.check_end()


@pytest.mark.timeout(1200)
def test_the_slurm_script_requeues_if_another_try_can_help(prepared: Path, tmp_path: Path) -> None:
    programs, state, run = tmp_path / "bin", tmp_path / "state", tmp_path / "run"
    programs.mkdir()
    state.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = str(os.getpid())
    variables = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": job,
        "STATE": str(state),
        "PATH": f"{programs}{os.pathsep}{clean_environment()['PATH']}",
    }
    command = ["bash", "launch_scripts/pretrain.slurm", *FLAGS, "--data", str(prepared)]

    def requeues() -> list[str]:
        return (state / "requeued").read_text().split() if (state / "requeued").exists() else []

    def start(*extra: str) -> Started:
        return Started(run, [*command, *extra], **variables)

    # Slurm's warning goes to the tasks, not to the script: the run saves and is requeued.
    with start() as started:
        until(lambda: steps(run) > 3)
        for task in (state / "tasks").read_text().split():
            os.kill(int(task), signal.SIGUSR1)
        assert started.process.wait(180) == 0, started.output.read_text()
        started.check_end()
        assert requeues() == [job]
    # A task is killed after a new checkpoint: requeued.
    with start("--save-every", "1") as started:
        saved = complete_steps(run)[-1]
        until(lambda: complete_steps(run)[-1] > saved)
        os.kill(int((state / "tasks").read_text().split()[1]), signal.SIGKILL)
        assert started.process.wait(180) == 0, started.output.read_text()
    assert len(requeues()) == 2
    # A task is killed before any new checkpoint: not requeued, since the next try would end in the same way.
    with start() as started:
        until(lambda: "resuming" in started.output.read_text())
        os.kill(int((state / "tasks").read_text().split()[1]), signal.SIGKILL)
        assert started.process.wait(180) == 128 + signal.SIGKILL, started.output.read_text()
    assert len(requeues()) == 2
