"""Watchdog: if a run waits too long, write the stacks of every thread and loader worker, and end the run.

Each rank has its own watchdog. The training loop resets the watchdog before each stage, such as loading a batch. A
thread measures the time since the last reset, and ends the rank if this time exceeds a limit. If one rank hangs, other
ranks wait for this rank in a collective and exceed the limit at about the same time. The run folder therefore contains
the stacks of all these ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dnabert_rm.data.loader import STOP_SIGNALS
from dnabert_rm.utils.errors import EXIT_HANG

FOLDER_NAME = "hangs"
FIRST_TIMES = 4
"""Factor by which the limit is longer for stages that happen once, such as loading or the first step (compilation)."""
ONCE = ("starting", "loading", "first batch", "first step")
_WORKER_TIMEOUT_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


class Watchdog:
    """Timer that ends the process with exit code `EXIT_HANG` if `reset` is not called for `limit` seconds.

    A limit of 0 disables the timer. Stages that happen once (`ONCE`), such as the first step, have a longer limit. Time
    in which the process is suspended does not count, so a suspended job is not mistaken for a hang.
    """

    def __init__(self, run: Path, rank: int, limit: float) -> None:
        self.limit = limit
        self._rank = rank
        self._folder = run / FOLDER_NAME
        self._stage = ONCE[0]
        self._num_resets = 0
        self._closed = threading.Event()
        # Loader workers write their stacks to this in-memory file, which they open through /proc of this process.
        self._stacks = open(os.memfd_create("stacks"), "rb", buffering=0)  # noqa: SIM115  # closed by close()
        self.prepare_worker: Callable[[int], None] = functools.partial(
            prepare_worker, f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        )
        if limit > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def reset(self, stage: str) -> None:
        """Restart the timer at the start of `stage`: "loader", "step", "save", "validation", or one of `ONCE`."""
        self._stage = stage
        self._num_resets += 1

    def close(self) -> None:
        """Stop the timer."""
        self._closed.set()
        self._stacks.close()

    def _watch(self) -> None:
        pause = min(1.0, self.limit / 10)
        resets_seen = -1
        waited = 0.0
        before = time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            if resets_seen != self._num_resets:
                resets_seen = self._num_resets
                waited = 0.0
            # A pause longer than requested means that the process was suspended or starved.
            waited += min(now - before, 2 * pause)
            before = now
            if waited > self.limit * (FIRST_TIMES if self._stage in ONCE else 1):
                self._end(waited)

    def _end(self, waited: float) -> None:
        """Write the stacks, give the other ranks time to write theirs, then kill this process and its workers."""
        title = f"rank {self._rank}: waited {waited:.0f} s for: {self._stage}"
        try:
            where = str(self._write_stacks(title, [child.pid or 0 for child in multiprocessing.active_children()]))
        except OSError as error:
            where = f"nowhere ({error})"
        title += f" (train.hang_timeout_seconds is {self.limit:g})"
        line = f"{title}; stacks in {where}; run the same command to resume"
        os.write(2, f"\n{line}\n".encode())
        # A launcher kills the other ranks as soon as one ends.
        time.sleep(min(10.0, self.limit / 2))
        # The main thread must not run again: it would notice the dead workers and exit with another code.
        descendants = _descendants(os.getpid())
        sys.setswitchinterval(60)
        for process in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        os._exit(EXIT_HANG)

    def _write_stacks(self, title: str, workers: list[int]) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}_rank_{self._rank}.txt"
        with open(path, "wb", buffering=0) as out:
            out.write(f"{title}\nhost {socket.gethostname()}, process {os.getpid()}\n\n".encode())
            faulthandler.dump_traceback(out, all_threads=True)
            for worker in workers:
                self._write_worker_stacks(out, worker)
        return path

    def _write_worker_stacks(self, out: BinaryIO, worker: int) -> None:
        """Request a loader worker's stacks with SIGUSR2, wait until they are complete and copy them to `out`."""
        out.write(f"\nloader worker, process {worker}, {_process_state(worker)}\n\n".encode())
        start = self._stacks.seek(0, os.SEEK_END)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGUSR2)
        size = start
        for _ in range(int(_WORKER_TIMEOUT_SECONDS / 0.1)):
            time.sleep(0.1)
            before, size = size, self._stacks.seek(0, os.SEEK_END)
            if start < before == size:
                break
        self._stacks.seek(start)
        out.write(self._stacks.read() or b"the worker did not respond\n")


def _descendants(process: int) -> list[int]:
    """Return the ids of all descendants of a process, for example loader workers."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="utf-8").split()):
            found += [child, *_descendants(child)]
    return found


def _process_state(process: int) -> str:
    """Return the state of a process as text, for example running, sleeping or waiting for a disk."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "ended"
    return next((line.replace("\t", " ").lower() for line in lines if line.startswith("State:")), "state: unknown")


def prepare_worker(stacks: str, _: int) -> None:
    """Set up the signal handling of a loader worker. Each worker calls this when it starts.

    Stop signals are blocked, because DeepSpeed's launcher and Slurm send them to whole process trees. If a stop signal
    killed a worker, the run would end before saving a checkpoint. Only a SIGTERM from the parent process, which is a
    rank, ends the worker. The worker is also killed when its parent dies, because orphaned workers would keep files and
    pipes open. On SIGUSR2 the worker writes its stacks to the file `stacks`.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_exit_on_parent_signal, name="signals", daemon=True).start()
    faulthandler.register(signal.SIGUSR2, open(stacks, "ab", buffering=0), all_threads=True)  # noqa: SIM115


def _exit_on_parent_signal() -> None:
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == os.getppid():
            os._exit(0)
