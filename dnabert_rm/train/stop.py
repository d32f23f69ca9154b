"""What asks a run to stop: a signal, a stop file, a launcher that has gone. Torch-free.

A wish on any rank stops all of them after the same step: the loop adds up the ranks' wishes in a sum that each step
makes anyhow. docs/stopping.md tells users what comes of each.
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
"""Names a second stop file, which whoever started this run makes and removes (launch_scripts/pretrain.sh)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequests:
    """Whether somebody asked this rank to stop. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.launchers = launcher_processes()
        self._files: list[Path] = []

    def listen(self) -> None:
        """Take the signals from now on; call it in the main thread, before anything that takes long."""
        for number in SIGNALS:
            # Started in the background by a shell, a process ignores Ctrl-C; it goes on doing so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_new, self.signal = self.signal is None, self.signal or signal.Signals(number)
        if is_new and is_first_rank():
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Not print: it may be what the signal interrupted. Ctrl-C may have ended who reads it (`… | tee log`).
            with contextlib.suppress(OSError):
                os.write(2, f"\n{signal.Signals(number).name}: finishing the step, then saving{again}\n".encode())

    def watch_files(self, run: Path) -> None:
        """Rank 0, once it holds the run's lock: look for stop files from now on; one from before the run goes."""
        (run / STOP_NAME).unlink(missing_ok=True)
        self._files = [run / STOP_NAME]
        if STOP_FILE_VARIABLE in os.environ:
            self._files.append(Path(os.environ[STOP_FILE_VARIABLE]))

    def wanted(self) -> bool:
        """Whether this rank was asked to stop; a few microseconds, on rank 0 a look at the run folder besides."""
        if self.signal is not None or any(path.exists() for path in self._files):
            return True
        return self.launchers != launcher_processes()[: len(self.launchers)]

    def obey(self, steps_done: int, last_step: int) -> None:
        """`StoppedError` where steps are left; on all ranks, when they have saved.

        The run folder's stop file goes, so that the next start does not find it.
        """
        for path in self._files[:1]:
            path.unlink(missing_ok=True)
        if steps_done < last_step:
            raise StoppedError(
                f"stopped on request with {steps_done} of {last_step} steps done; run the same command to go on"
            )


def launcher_processes() -> list[int]:
    """Process ids of DeepSpeed's launcher above this process: the one that starts ranks, then the `deepspeed` command.

    Empty under any other parent. A signal that kills the launcher leaves its ranks running; this is how they notice.
    """
    node = os.getppid()
    if "deepspeed.launcher.launch" not in _command_line(node):
        return []
    command = _parent(node)
    is_command = any(Path(word).name == "deepspeed" for word in _command_line(command))
    return [node, command] if is_command else [node]


def _command_line(process: int) -> list[str]:
    """Words of a process's command line; none where it has gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _parent(process: int) -> int:
    """Process id of a process's parent; 0 where it has gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
