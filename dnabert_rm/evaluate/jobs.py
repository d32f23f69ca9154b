"""Processes side by side on the GPUs or the CPU: started, awaited, ended with this one."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_SECONDS_TO_END = 10


@dataclass(frozen=True)
class Job:
    """A command and the file that its output goes to."""

    command: list[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """The job of this number has ended, after so many seconds, with an exit code (negative: by that signal)."""

    number: int
    code: int
    seconds: float


@dataclass
class _Running:
    number: int
    slot: int
    process: subprocess.Popen
    begun: float


def visible_gpus() -> list[str]:
    """The GPUs that a process started here would see, as `CUDA_VISIBLE_DEVICES` names them; torch is not needed."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return [] if "-1" in names else [name for name in names if name]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    return asked.stdout.split() if asked.returncode == 0 else []


def slot_variables(num_jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment variables of each of `num_jobs` places for a job: its GPU, or its share of the CPU's threads."""
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(num_jobs)]
    if num_jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}] * num_jobs
    return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num_jobs))}] * num_jobs


def run_jobs(jobs: Iterable[Job], slots: Sequence[dict[str, str]]) -> Generator[Ended, None, None]:
    """Run the jobs in order, one a slot at a time, each taken from `jobs` when it starts; yields each as it ends.

    However the loop is left, by an exception too, no process stays; where this process is killed the system kills them.
    """
    waiting = enumerate(jobs)
    free = deque(range(len(slots)))
    running: list[_Running] = []
    try:
        while True:
            while free and (given := next(waiting, None)):
                slot = free.popleft()
                running.append(_Running(given[0], slot, _start(given[1], slots[slot]), time.monotonic()))
            if not running:
                return
            ended = [one for one in running if one.process.poll() is not None]
            if not ended:
                time.sleep(_POLL_SECONDS)
            for one in ended:
                running.remove(one)
                free.append(one.slot)
                yield Ended(one.number, one.process.returncode, time.monotonic() - one.begun)
    finally:
        _end([one.process for one in running])


def _start(job: Job, variables: dict[str, str]) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w") as log:
        return subprocess.Popen(
            job.command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # This process has one thread, so what runs between fork and exec can't meet a lock that another holds.
            preexec_fn=functools.partial(_die_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The signal comes at a later death alone: a parent that died before this was asked for sends none.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return next((line.strip() for line in reversed(lines) if line.strip()), "(the log is empty)")
