"""Runs of the cluster tests: their flags, and what they wrote."""

from __future__ import annotations

import shlex
from pathlib import Path

from support import read_metrics

STEPS = 200
FEW = 6
FLAGS = shlex.split(
    f"--preset tiny --steps {STEPS} --global-batch 8 --window 66 --log-every 1 "
    "--model.num_layers 1 --model.hidden_size 64 --train.threads_per_rank 1"
)
ENDLESS = ["--steps", "100000"]


def losses(run: Path) -> list[float]:
    """Return the losses of a run, whose steps must be complete and in order."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def steps(run: Path) -> int:
    """Return the number of steps in metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
