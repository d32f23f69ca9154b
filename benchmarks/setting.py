"""What the training benchmarks train on and how: a random genome, prepared, and a run configuration. Torch-free."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.config import RunConfig, load_preset, resolve

ENDLESS = 1_000_000
"""Steps of a run that the parent ends."""


def prepare(folder: Path, num_bases: int) -> Path:
    """A prepared folder of a random genome, made by the project's own command."""
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(0).integers(0, 4, num_bases, dtype=np.uint8)]
    (folder / "genome.fa").write_bytes(b">contig\n" + bases.tobytes() + b"\n")
    command = [sys.executable, "-m", "data_prep", "build", folder / "genome.fa", "--out", folder / "data"]
    subprocess.run([*command, "--workers", "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "data"


@dataclass(frozen=True)
class Setting:
    """What is trained and how; `windows` a step, `tokens` a window, `fields` of the run configuration by section."""

    data: str
    preset: str = "small"
    precision: str = "fp32"
    device: str = "cpu"
    windows: int = 4
    tokens: int = 512
    threads: int = 0
    synthetic: bool = False
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config(self, folder: str) -> RunConfig:
        """The run configuration; on a CPU the loader works in the training process, as the Trainer's does."""
        preset = load_preset(self.preset, self.fields.get("model", {}).get("architecture"))
        preset["model"].setdefault("max_positions", self.tokens)
        measured = {
            "data": {"path": [self.data], "window": self.tokens, "num_workers": 2 if self.device == "cuda" else 0},
            "train": {
                "output": folder, "steps": ENDLESS, "global_batch": self.windows, "precision": self.precision,
                "save_every": ENDLESS, "threads_per_rank": self.threads, "hang_timeout_seconds": 0.0,
            },
        }  # fmt: skip
        return resolve(preset, measured, self.fields)
