"""Kill test: SIGKILL a random rank of a 2-rank ZeRO-3 run a hundred times, and compare the resumed runs.

    python benchmarks/kill.py [--kills 100] [--seed 0] [--folder DIR]

The moments are random: at the start or between saves, and every second time within a save. After each kill every
visible checkpoint must be complete. Finished runs must equal an uninterrupted one bit for bit, in all values of
metrics.jsonl and TensorBoard except times, with each step once. Prints the counts and PASS or FAIL.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from kills import NUM_RANKS, kill_and_resume
from support import random_bases, run_ranks, write_prepared

FLAGS = shlex.split(
    "--preset tiny --model.num_layers 1 --model.hidden_size 64 --model.dropout 0.1 --steps 200 --global-batch 8 "
    "--window 66 --workers 1 --log-every 1 --save-every 3 --train.keep_every 30 --phase-ends 20,60,100,150,200"
)


def main() -> int:
    """Kill and resume runs, and print the counts. Return exit code 1 if a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="folder for the runs (default: a temporary one)")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        rng = np.random.default_rng(args.seed)
        write_prepared(folder / "data", [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
        words = [*FLAGS, "--data", folder / "data"]
        run_ranks(NUM_RANKS, *words, "--output", folder / "undisturbed")
        tally = kill_and_resume(words, folder, args.kills, random.Random(args.seed), folder / "undisturbed")
    print(
        f"{tally.kills} kills: {tally.in_saves} within a save or a deletion, {tally.before_first_step} before the "
        f"first step of a start, {tally.kills - tally.in_saves - tally.before_first_step} elsewhere; {tally.runs} runs "
        f"compared with an uninterrupted one; {time.monotonic() - start:.0f} s"
    )
    print(*tally.problems, "FAIL" if tally.problems else "PASS", sep="\n")
    return bool(tally.problems)


if __name__ == "__main__":
    sys.exit(main())
