"""Start all ranks on this machine: `dnabert-rm pretrain --gpus N`. No launch script is needed.

Does what `bash launch_scripts/pretrain.sh` does, with the same answers to signals.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from dnabert_rm.distributed.launchers import LAUNCHER_VARIABLE, free_port
from dnabert_rm.train.stop import STOP_FILE_VARIABLE
from dnabert_rm.utils.errors import ConfigError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
EXIT_KILLED = 130
"""Exit code after a second Ctrl-C."""


def launch_ranks(num_ranks: int, words: Sequence[str]) -> int:
    """Run `dnabert-rm pretrain WORDS` on `num_ranks` ranks with DeepSpeed's launcher, and return its exit code.

    At SIGTERM, SIGUSR1, SIGHUP and Ctrl-C the ranks finish the step, save, and exit with code 75. A second Ctrl-C
    kills them. Signals that this process ignores, as under `nohup`, stay ignored.

    Raises `ConfigError` if CUDA_VISIBLE_DEVICES has fewer GPUs than ranks.
    """
    # DeepSpeed's launcher of one node: `deepspeed` itself would ignore CUDA_VISIBLE_DEVICES and read /job/hostfile.
    world = json.dumps({"localhost": _devices(num_ranks)})
    port = os.environ.get("MASTER_PORT") or str(free_port())
    command = [
        *[sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--log_level=warning"],
        f"--world_info={base64.urlsafe_b64encode(world.encode()).decode()}",
        *["--master_addr=127.0.0.1", f"--master_port={port}", "--module", "dnabert_rm", "pretrain", *words],
    ]
    environment = {**os.environ, LAUNCHER_VARIABLE: "--gpus"}
    if not torch.accelerator.is_available():
        # Otherwise DeepSpeed warns that it found no GPU.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if Path(__file__).parents[2] != Path.cwd():
        # `python -m` would import from the working directory first, where another version may be.
        environment["PYTHONSAFEPATH"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        stops = _StopSignals(Path(folder) / "stop")
        environment[STOP_FILE_VARIABLE] = str(stops.file)
        with stops:
            # The ranks have a process group of their own, which Ctrl-C does not reach: the launcher would kill them.
            stops.launcher = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip
            code = stops.launcher.wait()
    return EXIT_KILLED if stops.has_killed else code if code >= 0 else 128 - code


def _devices(num_ranks: int) -> list[int | str]:
    """Return the GPUs of the ranks, as numbers or ids: the first ones that CUDA_VISIBLE_DEVICES allows."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible:
        return list(range(num_ranks))
    if len(visible) < num_ranks:
        raise ConfigError(
            f"--gpus {num_ranks}: CUDA_VISIBLE_DEVICES={','.join(visible)} has fewer GPUs; lower --gpus or change the "
            "variable"
        )
    return list(visible[:num_ranks])


class _StopSignals:
    """Handlers of the stop signals inside a `with` block: they create the stop file, or kill the launcher's group."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.launcher: subprocess.Popen[bytes] | None = None
        self.has_killed = False

    def __enter__(self) -> None:
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._stop) for number in heard}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.file.exists() and self.launcher:
            self.has_killed = True
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(self.launcher.pid, signal.SIGKILL)
            return
        self.file.touch()
        name = signal.Signals(number).name.removeprefix("SIG")
        with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of the output
            print(f"{name}: finishing the step and saving; press Ctrl-C (again) to end at once", file=sys.stderr)
