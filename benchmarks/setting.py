"""Data and configuration of the training benchmarks: a prepared random genome and run settings. Torch-free."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.config import RunConfig, load_preset, resolve

ENDLESS = 1_000_000
"""Number of steps of a run that the benchmark ends."""


def prepare(folder: Path, num_bases: int) -> Path:
    """Prepare a random genome with `data_prep build` and return the prepared folder."""
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(0).integers(0, 4, num_bases, dtype=np.uint8)]
    (folder / "genome.fa").write_bytes(b">contig\n" + bases.tobytes() + b"\n")
    command = [sys.executable, "-m", "data_prep", "build", folder / "genome.fa", "--out", folder / "data"]
    subprocess.run([*command, "--workers", "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "data"


@dataclass(frozen=True)
class Setting:
    """Settings of one training benchmark."""

    data: str
    preset: str = "small"
    precision: str = "fp32"
    device: str = "cpu"
    windows: int = 4
    """Windows per step."""
    tokens: int = 512
    """Tokens per window."""
    threads: int = 0
    synthetic: bool = False
    """Train on one resident batch, without the loader."""
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further fields of the run configuration, by section."""
    deepspeed_changes: dict[str, Any] = field(default_factory=dict)
    """Changes of the DeepSpeed configuration, by section."""
    own_engine: bool = True
    """False: DeepSpeed's own engine trains, even where `DeviceEngine` could."""
    float8: bool = False
    """Convert the linear layers to torchao's float8."""

    def config(self, folder: str) -> RunConfig:
        """Return the run configuration. On a CPU the loader runs in the training process, like the Trainer's."""
        preset = load_preset(self.preset, self.fields.get("model", {}).get("architecture"))
        preset["model"].setdefault("max_positions", self.tokens)
        preset["model"] |= {"initial_weights": "random", "loss": "token"}  # as in the peers
        measured = {
            "data": {"path": [self.data], "window": self.tokens, "num_workers": 2 if self.device == "cuda" else 0},
            "train": {
                "output": folder,
                "steps": ENDLESS,
                "global_batch": self.windows,
                "precision": self.precision,
                "save_every": ENDLESS,
                "threads_per_rank": self.threads,
                "hang_timeout_seconds": 0.0,
            },
        }
        return resolve(preset, measured, self.fields)
