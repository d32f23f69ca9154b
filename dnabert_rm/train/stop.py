"""Stop requests to a run: signals, a stop file, or a launcher that has ended. Torch-free.

A request on any rank stops all ranks after the same step. The ranks learn of the request from the all-reduce that sums
the step's loss. docs/training.md lists the effect of each request.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from dnabert_rm.utils.errors import StoppedError, is_first_rank

STOP_NAME = "stop"
STOP_FILE_VARIABLE = "DNABERT_RM_STOP_FILE"
"""Environment variable with the path of a second stop file, created and removed by launch_scripts/pretrain.sh."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequests:
    """Stop requests to this rank. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.launchers = launcher_processes()
        self._files: list[Path] = []

    def listen(self) -> None:
        """Install the signal handlers. Call this in the main thread, before any slow work."""
        for number in SIGNALS:
            # Shells make background processes ignore Ctrl-C. Keep that setting.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        if is_first_rank():
            hint = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            # Not `print`: the signal may have interrupted one. Ctrl-C may also have ended the reader of `… | tee log`.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.signal.name}: finishing the step, then saving{hint}\n".encode())

    def watch_files(self, run: Path) -> None:
        """Delete any old stop file from the run folder `run`, and make `wanted` look for stop files from now on.

        Call this only on rank 0, with the run folder locked.
        """
        (run / STOP_NAME).unlink(missing_ok=True)
        self._files = [run / STOP_NAME]
        if STOP_FILE_VARIABLE in os.environ:
            self._files.append(Path(os.environ[STOP_FILE_VARIABLE]))

    def wanted(self) -> bool:
        """Return whether this rank was asked to stop, by a signal or by the end of its launcher.

        On rank 0, a stop file counts too. The call takes microseconds.
        """
        # Unlike `Path.exists`, this does not raise if a network file system does not answer.
        if self.signal is not None or any(os.path.exists(path) for path in self._files):
            return True
        return self.launchers != launcher_processes()[: len(self.launchers)]

    def raise_if_unfinished(self, steps_done: int, last_step: int) -> None:
        """Delete the run folder's stop file, and raise `StoppedError` if steps are left.

        The file is deleted so that the next start does not find it. Call this on all ranks, after they have saved a
        checkpoint.
        """
        for path in self._files[:1]:
            path.unlink(missing_ok=True)
        if steps_done < last_step:
            if not steps_done:
                raise StoppedError("stopped on request before the first step; nothing was saved")
            raise StoppedError(
                f"stopped on request with {steps_done} of {last_step} steps done; run the same command to resume"
            )


def launcher_processes() -> list[int]:
    """Return the process ids of DeepSpeed's launcher: this rank's parent process, then the `deepspeed` command.

    The list is empty if DeepSpeed's launcher did not start this rank. If the `deepspeed` command did not start the
    parent process, the list has only the id of the parent process.

    A signal that kills the launcher does not end the ranks. `StopRequests.wanted` therefore compares the current ids
    with the ids at the start of the run.
    """
    node = os.getppid()
    if "deepspeed.launcher.launch" not in _command_line(node):
        return []
    command = _parent(node)
    is_command = any(Path(word).name == "deepspeed" for word in _command_line(command))
    return [node, command] if is_command else [node]


def _command_line(process: int) -> list[str]:
    """Return the words of a process's command line, or an empty list if the process has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _parent(process: int) -> int:
    """Return the process id of the parent of `process`, or 0 if `process` has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0
