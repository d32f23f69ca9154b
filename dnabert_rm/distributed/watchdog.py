"""The hang detector: a wait that takes too long ends the run, and leaves the stacks of every thread and loader worker.

Each rank watches itself. The loop says what it begins to wait for (`beat`); a thread counts. The rank that hangs and
those that wait for it in a collective run out of time together, so the run folder shows both.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dnabert_rm.data.loader import STOP_SIGNALS
from dnabert_rm.utils.errors import EXIT_HANG

FOLDER_NAME = "hangs"
FIRST_TIMES = 4
"""Times the limit that stages have which happen once: loading, the first batch, the first step (compilation)."""
ONCE = ("starting", "loading", "first batch", "first step")
_WORKER_ANSWER_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


class Watchdog:
    """Ends the process with `EXIT_HANG` when no `beat` came for `limit` seconds; 0: never.

    Only time in which this process ran counts, so a suspended job is not taken for one that hangs.
    """

    def __init__(self, run: Path, rank: int, limit: float) -> None:
        self.limit, self._rank, self._folder = limit, rank, run / FOLDER_NAME
        self._stage, self._beats = ONCE[0], 0
        self._closed = threading.Event()
        # What loader workers write their stacks to: a file in memory, which they open through this process.
        self._stacks = open(os.memfd_create("stacks"), "rb", buffering=0)  # noqa: SIM115  # closed by close()
        self.prepare_worker: Callable[[int], None] = functools.partial(
            prepare_worker, f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        )
        if limit > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, stage: str) -> None:
        """The rank begins to wait for `stage`: "loader", "step", "save", "validation", or one of `ONCE`."""
        self._stage = stage
        self._beats += 1

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        self._stacks.close()

    def _watch(self) -> None:
        pause = min(1.0, self.limit / 10)
        seen, waited, before = -1, 0.0, time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            if seen != self._beats:
                seen, waited = self._beats, 0.0
            # A longer pause than asked for means that the process was suspended or starved.
            waited += min(now - before, 2 * pause)
            before = now
            if waited > self.limit * (FIRST_TIMES if self._stage in ONCE else 1):
                self._end(waited)

    def _end(self, waited: float) -> None:
        """Write the stacks, give the other ranks time for theirs, and end this process and its loader workers."""
        what = f"rank {self._rank}: waited {waited:.0f} s for: {self._stage}"
        try:
            where = str(self._write_stacks(what, [child.pid or 0 for child in multiprocessing.active_children()]))
        except OSError as error:
            where = f"nowhere ({error})"
        what += f" (train.hang_timeout_seconds is {self.limit:g})"
        line = f"{what}; stacks in {where}; run the same command to go on"
        os.write(2, f"\n{line}\n".encode())
        # A launcher kills the other ranks as soon as one ends.
        time.sleep(min(10.0, self.limit / 2))
        # The main thread must not run again: it would raise that its workers are gone, and end with another code.
        descendants = _descendants(os.getpid())
        sys.setswitchinterval(60)
        for process in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        os._exit(EXIT_HANG)

    def _write_stacks(self, what: str, workers: list[int]) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}_rank_{self._rank}.txt"
        with open(path, "wb", buffering=0) as out:
            out.write(f"{what}\nhost {socket.gethostname()}, process {os.getpid()}\n\n".encode())
            faulthandler.dump_traceback(out, all_threads=True)
            for worker in workers:
                self._write_worker(out, worker)
        return path

    def _write_worker(self, out: BinaryIO, worker: int) -> None:
        """Ask a loader worker for its stacks and wait for them."""
        out.write(f"\nloader worker, process {worker}, {_state(worker)}\n\n".encode())
        start = self._stacks.seek(0, os.SEEK_END)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGUSR2)
        size = start
        for _ in range(int(_WORKER_ANSWER_SECONDS / 0.1)):
            time.sleep(0.1)
            before, size = size, self._stacks.seek(0, os.SEEK_END)
            if start < before == size:
                break
        self._stacks.seek(start)
        out.write(self._stacks.read() or b"it gave no answer\n")


def _descendants(process: int) -> list[int]:
    """Process ids of the children, their children (a `pipe:` URL's command) and so on."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _state(process: int) -> str:
    """What the system says that a process does: running, sleeping, stopped, waiting for a disk."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return "gone"
    return next((line.replace("\t", " ").lower() for line in lines if line.startswith("State:")), "state: unknown")


def prepare_worker(stacks: str, _: int) -> None:
    """Runs first in each loader worker: stop signals are the rank's business, SIGUSR2 asks for stacks.

    DeepSpeed's launcher and Slurm signal whole process trees; a worker that died of it would end the run before its
    rank has saved. Only the rank itself may end its workers. They die with it: orphans would hold files and pipes.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_obey_parent, name="signals", daemon=True).start()
    faulthandler.register(signal.SIGUSR2, open(stacks, "ab", buffering=0), all_threads=True)  # noqa: SIM115


def _obey_parent() -> None:
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == os.getppid():
            os._exit(0)


@contextlib.contextmanager
def watchdog(run: Path, rank: int, limit: float) -> Iterator[Watchdog]:
    """A watchdog that is closed however the block is left."""
    found = Watchdog(run, rank, limit)
    try:
        yield found
    finally:
        found.close()
