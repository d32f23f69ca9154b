"""Time of a training step with each training loss, in one run.

    python benchmarks/losses.py [--preset base] [--windows 2] [--device cpu] [--precision fp32]

Each loss has its own process, and one runs at a time. Every round runs every loss once. Step times are divided by that
of "token" in the same round. The output has the median, minimum and maximum of these ratios. Exit code 1 if "base"
takes more than 1.05 times as long.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from setting import Setting, prepare
from train_step import Row, measure, ratios

LIMIT = 1.05
LOSSES = ("token", "base", "both")


def main(argv: list[str] | None = None) -> int:
    """Print the table. Return exit code 1 if the loss over bases is too slow."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), 4_000_000)
        setting = Setting(str(data), args.preset, args.precision, args.device, args.windows, args.window, args.threads)
        stage = "zero0" if args.precision == "fp32" else "zero1"
        rows: dict[str, Row] = {
            loss: ("ours", {"model": {"loss": loss}, "train": {"ds_config": stage}}) for loss in LOSSES
        }
        laps = measure(setting, rows, args.rounds, args.steps)
    print(
        f"{args.preset}, {args.precision}, {args.device}, {args.windows} windows of {args.window} tokens a step, "
        f"{args.threads} threads, {args.rounds} rounds of {args.steps} steps"
    )
    slowest = 0.0
    for loss, found in laps.items():
        ratio = ratios([(lap.wall, token.wall) for lap, token in zip(found, laps["token"], strict=True)])
        seconds = statistics.median(lap.wall / lap.steps for lap in found)
        print(f"{loss:<8}{seconds:>10.3f} s  " + "{median:.3f} x ({min:.3f}-{max:.3f})".format(**ratio))
        slowest = max(slowest, ratio["median"] if loss == "base" else 0.0)
    if slowest > LIMIT:
        print(f"FAILED: base takes {slowest:.3f} times as long as token; the limit is {LIMIT}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", help="model size (%(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--windows", type=int, default=2, help="windows per step (%(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens per window (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="steps per loss and round (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads per process (default: all cores)")
    args = parser.parse_args(argv)
    args.threads = args.threads or (len(os.sched_getaffinity(0)) if args.device == "cpu" else 0)
    return args


if __name__ == "__main__":
    sys.exit(main())
