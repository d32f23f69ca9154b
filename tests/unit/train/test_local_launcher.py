"""`pretrain --gpus`: which GPUs, and signals that are ignored. The ranks are tested in test_stop_by_launcher.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import clean_environment

from dnabert_rm.train.local_launcher import _devices
from dnabert_rm.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, [0, 1]), ("", [0, 1]), ("2,3", ["2", "3"]), ("5, 7,1", ["5", "7"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
)
def test_ranks_take_the_visible_gpus(visible: str | None, devices: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _devices(2) == devices


def test_more_ranks_than_visible_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ConfigError, match="--gpus 2: CUDA_VISIBLE_DEVICES=3 has fewer GPUs"):
        _devices(2)


HANDLERS = """
import pathlib, signal, sys, time
from dnabert_rm.train.local_launcher import _StopSignals
file = pathlib.Path(sys.argv[1])
with _StopSignals(file):
    print("ready", flush=True)
    time.sleep(1)
"""


@pytest.mark.parametrize("ignored", [True, False])
def test_ignored_signals_stay_ignored(ignored: bool, tmp_path: Path) -> None:
    """Under `nohup`, SIGHUP must not end the run."""
    action = signal.SIG_IGN if ignored else signal.SIG_DFL
    with subprocess.Popen(
        [sys.executable, "-c", HANDLERS, tmp_path / "stop"], env=clean_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, action),
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.wait(30) == 0
    assert (tmp_path / "stop").exists() != ignored
