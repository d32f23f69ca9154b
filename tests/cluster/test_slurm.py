"""Pretraining under Slurm: `srun`, and the batch script that requeues itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cluster_nodes import Node, require, until
from cluster_runs import ENDLESS, FEW, losses, steps
from cluster_slurm import PROGRAMS, Slurm

from dnabert_rm.checkpoint.run_folder import complete_steps

pytestmark = [require(*PROGRAMS), pytest.mark.timeout(900)]


class Job:
    """A batch job of `launch_scripts/pretrain.slurm` with one rank on each of two nodes, or as `options` say."""

    def __init__(self, slurm: Slurm, run: Path, words: list[str], *options: str, in_file: bool = False) -> None:
        """With `in_file`, the run folder is set in a configuration file."""
        self.slurm, self.run, self.output = slurm, run, run.with_suffix(".txt")
        output = ["--output", str(run)]
        if in_file:
            run.with_suffix(".toml").write_text(f'[train]\noutput = "{run}"\n')
            output = ["--config", str(run.with_suffix(".toml"))]
        self.id = slurm.submit(
            *["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", f"--output={self.output}", *options],
            *["launch_scripts/pretrain.slurm", *words, *output],
        )

    def explain(self) -> str:
        return f"{self.slurm.show(self.id)}\n{self.printed()}\n{self.slurm.logs()}"

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def until_state(self, state: str, restarts: int = 0) -> None:
        """Wait until the job has a state after a number of requeues."""

        def reached() -> bool:
            found = self.slurm.show(self.id)
            return found["JobState"] == state and int(found["Restarts"]) == restarts

        until(reached, 240, self.explain)

    def until_steps(self, number: int) -> None:
        until(lambda: steps(self.run) >= number, 240, self.explain)

    def until_checkpoint(self) -> None:
        until(lambda: (self.run / "checkpoints").exists() and complete_steps(self.run), 240, self.explain)


def rank_on(node: Node) -> int:
    """Return the rank's process on the second node; its loader processes have higher numbers."""
    return node.pids("python", "launch_scripts/pretrain.sh")[0]


def test_srun_on_two_slurm_nodes(slurm, flags, local_losses, tmp_path: Path) -> None:
    done = slurm.nodes[0].run(
        "srun", "-N2", "--ntasks-per-node", "1", "--cpus-per-task", "4", "python", "launch_scripts/pretrain.sh",
        *flags, "--output", tmp_path / "run", "--stop-after", str(FEW),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "run") == local_losses[:FEW]


def test_deepspeed_with_its_slurm_launcher(slurm, flags, local_losses, tmp_path: Path) -> None:
    """DeepSpeed takes the number of ranks from the host file; only `--launcher_args` spread them over the nodes."""
    hosts, run = tmp_path / "hosts", tmp_path / "run"
    hosts.write_text("n1 slots=1\nn2 slots=1\n")
    done = slurm.nodes[0].run(
        "deepspeed", "--hostfile", hosts, "--launcher", "slurm", "--launcher_args",
        "--nodes=2 --ntasks-per-node=1 --cpus-per-task=4", "launch_scripts/pretrain.sh",
        *flags, "--output", run, "--stop-after", str(FEW),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run) == local_losses[:FEW]


def test_usr1_saves_and_the_requeued_job_finishes(slurm, flags, local_losses, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path / "run", flags)
    job.until_steps(4)
    # srun's own default would be one core per task, whatever sbatch was given.
    environment = Path(f"/proc/{rank_on(slurm.nodes[1])}/environ").read_bytes().split(b"\0")
    assert b"SRUN_CPUS_PER_TASK=4" in environment
    slurm.command("scancel", "--signal=USR1", job.id)
    until(lambda: "; requeued" in job.printed(), 60, job.explain)
    stopped_at = steps(job.run)
    assert complete_steps(job.run) == [stopped_at] and stopped_at < len(local_losses), job.explain()
    job.until_state("COMPLETED", restarts=1)
    assert f"resuming at step {stopped_at}" in job.printed().replace(",", "")
    assert losses(job.run) == local_losses


def test_the_time_limit_stops_and_requeues(slurm, flags, tmp_path: Path) -> None:
    """Slurm checks limits twice a minute, and sends the warning up to 30 seconds early. Then `scancel` ends the job."""
    job = Job(slurm, tmp_path / "run", [*flags, *ENDLESS], "--time=30", "--signal=USR1@20")
    job.until_steps(4)
    # Lower the limit only now, because the start may take long. Limits are in minutes.
    hours, minutes, seconds = map(int, slurm.show(job.id)["RunTime"].split(":"))
    limit = hours * 60 + minutes + (1 if seconds < 20 else 2)
    slurm.command("scontrol", "update", f"jobid={job.id}", f"timelimit={limit}")
    until(lambda: "stopped at the time limit" in job.printed(), 120, job.explain)
    assert complete_steps(job.run)[-1] == steps(job.run), job.explain()
    slurm.command("scontrol", "update", f"jobid={job.id}", "timelimit=30")
    job.until_state("RUNNING", restarts=1)
    job.until_steps(steps(job.run) + 4)
    slurm.command("scancel", job.id)
    until(lambda: not slurm.command("squeue", "-h").strip(), 60, job.explain)
    assert slurm.state(job.id) == "CANCELLED"
    assert complete_steps(job.run)[-1] == steps(job.run), job.explain()


def test_a_killed_rank_is_requeued_after_a_checkpoint(slurm, flags, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path / "run", [*flags, *ENDLESS, "--save-every", "20"], in_file=True)
    job.until_checkpoint()
    os.kill(rank_on(slurm.nodes[1]), signal.SIGKILL)
    until(lambda: "; requeued" in job.printed(), 100, job.explain)
    assert f"ended with code {128 + signal.SIGKILL} after a new checkpoint" in job.printed(), job.explain()
    job.until_state("RUNNING", restarts=1)


def test_a_killed_rank_without_a_checkpoint_fails_the_job(slurm, flags, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path / "run", [*flags, *ENDLESS])
    job.until_steps(4)
    os.kill(rank_on(slurm.nodes[1]), signal.SIGKILL)
    job.until_state("FAILED")
    # Slurm adds the signal to the exit code of the batch script.
    assert slurm.show(job.id)["ExitCode"].startswith(f"{128 + signal.SIGKILL}:"), job.explain()
    assert "; requeued" not in job.printed()
    assert sum("another rank failed" in line for line in job.printed().splitlines()) == 1, job.explain()


def test_a_failed_node_requeues_the_job(slurm, flags, local_losses, tmp_path: Path) -> None:
    """All processes on a node are killed, Slurm's own too, and the administrator declares the node down."""
    job = Job(slurm, tmp_path / "run", [*flags, "--save-every", "40"])
    job.until_checkpoint()
    slurm.nodes[1].kill()
    slurm.command("scontrol", "update", "nodename=n2", "state=down", "reason=killed")
    job.until_state("PENDING", restarts=1)
    slurm.nodes[1].start_sshd()
    slurm.start_slurmd(slurm.nodes[1])  # returns the node to service (ReturnToService=2)
    job.until_state("COMPLETED", restarts=1)
    assert losses(job.run) == local_losses


def test_arms_of_an_array_share_a_node(slurm, flags, tmp_path: Path) -> None:
    """Two jobs with two ranks each run side by side on one node, and a requeue of one leaves the other alone."""
    arm = tmp_path / "arm.slurm"
    arm.write_text(
        '#!/usr/bin/env bash\nexec bash launch_scripts/pretrain.slurm "$@" '
        f"--output {tmp_path}/arm$SLURM_ARRAY_TASK_ID\n"
    )
    array = slurm.submit(
        "--array=0-1", "--nodes=1", "--nodelist=n1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=2",
        "--requeue", "--open-mode=append", f"--output={tmp_path}/arm%a.txt", arm, *flags, *ENDLESS,
    )  # fmt: skip
    runs = [tmp_path / f"arm{number}" for number in range(2)]

    def explain() -> str:
        return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.txt"))) + slurm.logs()

    until(lambda: min(map(steps, runs)) >= FEW, 300, explain)
    # The last job of an array has the array's own number.
    slurm.command("scancel", "--signal=USR1", f"{array}_1")
    until(lambda: "; requeued" in (tmp_path / "arm1.txt").read_text(), 100, explain)
    before = steps(runs[0])
    until(lambda: steps(runs[0]) > before, 60, explain)
    found = [slurm.show(f"{array}_{number}") for number in range(2)]
    assert [fields["Restarts"] for fields in found] == ["0", "1"], explain()
    assert found[0]["JobState"] == "RUNNING"
