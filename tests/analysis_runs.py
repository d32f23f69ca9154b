"""Two small real runs for the tests of the analysis: RandomMask with a validation, a fixed span without."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from support import random_bases, run_ranks, write_prepared

FLAGS = shlex.split(
    "--preset tiny --model.hidden_size 32 --model.intermediate_size 64 --model.max_positions 64 --steps 12 "
    "--global-batch 4 --window 34 --workers 0 --log-every 1 --save-every 4 --train.keep_last 0 --ds-config zero1"
)


def make_runs(folder: Path) -> Path:
    """Fill `folder` with prepared/ (k = 3) and the runs randommask/ (12 steps, three checkpoints) and fixed/."""
    rng = np.random.default_rng(0)
    contigs = [[random_bases(rng, 400) for _ in range(3)] for _ in range(3)]
    write_prepared(folder / "prepared", contigs, k=3, splits={1: "val"})
    shared = [*FLAGS, "--data", folder / "prepared"]
    phases = ["--phase-ends", 0.25, 0.5, 0.75, 1.0, "--validation.every", 3, "--validation.windows", 6]
    run_ranks(1, *shared, *phases, "--output", folder / "randommask")
    run_ranks(1, *shared, "--masking", "fixed", "--validation.every", 0, "--output", folder / "fixed")
    return folder
