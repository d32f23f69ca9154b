"""Parallel child processes on GPUs or the CPU. All child processes end when the parent process ends."""

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

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_POLL_SECONDS = 0.1
_TERMINATE_SECONDS = 10
"""Time between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class ChildProcess:
    """A command line, and the log file for its output."""

    command: list[str]
    log: Path


@dataclass(frozen=True)
class FinishedJob:
    """Exit code and duration of a job."""

    index: int
    """Position of the job in the argument `jobs` of `run_jobs`."""
    code: int
    """Exit code; -N if signal N ended the process."""
    seconds: float


@dataclass
class _Running:
    index: int
    slot: int
    process: subprocess.Popen
    start_time: float


def visible_gpus() -> list[str]:
    """Return the visible GPUs as entries of `CUDA_VISIBLE_DEVICES`, e.g. ["0", "1"], without importing torch."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        names = [name.strip() for name in variable.split(",")]
        return [] if "-1" in names else [name for name in names if name]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    return result.stdout.split() if result.returncode == 0 else []


def slot_environments(num_jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Return the environment variables of each slot, where a slot runs one job at a time.

    `num_jobs` is the number of slots. With GPUs, each slot gets one GPU. Without GPUs, each slot gets an equal share of
    the CPU cores, unless `OMP_NUM_THREADS` is set already.
    """
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(num_jobs)]
    if num_jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}] * num_jobs
    return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num_jobs))}] * num_jobs


def run_jobs(jobs: Iterable[ChildProcess], slots: Sequence[dict[str, str]]) -> Generator[FinishedJob, None, None]:
    """Start the jobs in order, and yield the result of each job when the job finishes.

    At most `len(slots)` jobs run at a time. The next job is taken from `jobs` only when a slot is free. If the
    generator is closed early or raises an exception, the running jobs are terminated. If this process is killed on
    Linux, the kernel kills the running jobs.

    Args:
        jobs: Commands to run.
        slots: Environment variables of each slot, where a slot runs one job at a time.
    """
    waiting = enumerate(jobs)
    free_slots = deque(range(len(slots)))
    running: list[_Running] = []
    try:
        while True:
            while free_slots and (indexed_job := next(waiting, None)):
                index, job = indexed_job
                slot = free_slots.popleft()
                running.append(_Running(index, slot, _start(job, slots[slot]), time.monotonic()))
            if not running:
                return
            finished = [entry for entry in running if entry.process.poll() is not None]
            if not finished:
                time.sleep(_POLL_SECONDS)
            for entry in finished:
                running.remove(entry)
                free_slots.append(entry.slot)
                yield FinishedJob(entry.index, entry.process.returncode, time.monotonic() - entry.start_time)
    finally:
        _terminate([entry.process for entry in running])


def _start(job: ChildProcess, variables: dict[str, str]) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w", encoding="utf-8") as log:
        return subprocess.Popen(
            job.command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Safe between fork and exec: this process has one thread, so no other thread can hold a lock.
            preexec_fn=functools.partial(_die_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The kernel sends the signal only if the parent dies after the prctl call. The parent may have died before.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _terminate(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _TERMINATE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """Return the last non-blank line of a log file, or "(no log)" or "(the log is empty)"."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return next((line.strip() for line in reversed(lines) if line.strip()), "(the log is empty)")
