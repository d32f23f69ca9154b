"""Ranks killed at random moments, saves included: the resumed run equals one without kills, bit for bit.

`benchmarks/kill.py` does the same a hundred times.
"""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import numpy as np
from kills import NUM_RANKS, kill_and_resume
from support import random_bases, run_ranks, write_prepared

FLAGS = shlex.split(
    "--preset tiny --model.num_layers 1 --model.hidden_size 64 --model.dropout 0.1 --steps 40 --global-batch 8 "
    "--window 66 --workers 1 --log-every 1 --save-every 4 --train.keep_every 12"
)


def test_four_kills_change_nothing_in_the_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    words = [*FLAGS, "--data", tmp_path / "data"]
    run_ranks(NUM_RANKS, *words, "--output", tmp_path / "undisturbed")
    tally = kill_and_resume(words, tmp_path, 4, random.Random(1), tmp_path / "undisturbed", min_in_saves=1)
    print(tally)
    assert not tally.problems
    assert tally.kills >= 4 and tally.in_saves >= 1
