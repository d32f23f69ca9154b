"""Speed of the training step compared with Hugging Face's Trainer and a bare loop, and a profile of its parts.

    python benchmarks/train_step.py [--preset small] [--precision fp32] [--device cpu]

All contenders have the same model, weights, windows, masks, precision and device (contenders.py). Each has its own
process, and one runs at a time. Every round runs every row once. A figure is the median over the rounds; a ratio is the
median of the rounds' ratios, with minimum and maximum. Exit code 1 if ours is below 1.25 times the Trainer's speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from setting import Setting, prepare
from workers import Lap, workers

from dnabert_rm.utils.system_info import describe_environment

TARGET = 1.25
TRAINER = "Hugging Face Trainer"
PARTS = "ours without DeepSpeed"
LARGEST_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 2e-2}
Fields = dict[str, dict[str, Any]]
Row = tuple[str, Fields]
"""A function in contenders.py, and fields of the run configuration by section."""


def make_rows(precision: str, attention: str, compiled: bool) -> dict[str, Row]:
    """Return the rows. Ours comes first, in the ZeRO stage that is cheapest for one rank, then in the other stages.

    The peers have their default settings. If our settings differ, the Trainer has a second row with them.
    """
    own: dict[str, Any] = {"architecture": "bert", "attention": attention, "compile": compiled}
    plain: dict[str, Any] = own | {"attention": "sdpa", "compile": False}
    # DeepSpeed's bf16 needs a ZeRO stage of at least 1. Layers whose weights ZeRO-3 gathers can't be compiled.
    stages = [0] * (precision == "fp32") + [1] + [3] * (not compiled)
    rows: dict[str, Row] = {
        f"ours, ZeRO-{stage}": ("ours", {"model": own, "train": {"ds_config": f"zero{stage}"}}) for stage in stages
    }
    rows[TRAINER] = ("hugging_face_trainer", {"model": plain})
    if own != plain:
        rows["Trainer, set as ours"] = ("hugging_face_trainer", {"model": own})
    rows["bare transformers loop"] = ("bare_loop", {"model": plain})
    return {**rows, PARTS: ("ours_in_parts", {"model": own})}


def main(argv: list[str] | None = None) -> int:
    """Print the tables. Return exit code 1 if the target is missed."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), args.bases)
        setting = Setting(str(data), args.preset, args.precision, args.device, args.windows, args.window, args.threads)
        laps = measure(setting, make_rows(args.precision, args.attention, args.compile), args.rounds, args.steps)
    report = summarize(setting, laps, args)
    print(json.dumps(report) if args.json else as_text(report))
    difference, ratio = report["largest_first_loss_difference"], report["rows"][TRAINER]["ours_is"]["median"]
    if difference > LARGEST_LOSS_DIFFERENCE[args.precision]:
        print(
            f"FAILED: the losses of the first step differ by {difference:.2g}; the rows must train on the same batches",
            file=sys.stderr,
        )
        return 1
    if ratio < TARGET:
        print(f"FAILED: ours is {ratio:.2f} times the Trainer; the target is {TARGET}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="model size (%(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--windows", type=int, default=4, help="windows per step (%(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens per window (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="steps per row and round (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads per contender (default: all cores)")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"), help="ours: --model.attention")
    parser.add_argument("--compile", action="store_true", help="ours: --model.compile (without a row for ZeRO-3)")
    parser.add_argument("--bases", type=int, default=4_000_000, help="size of the random genome (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    args = parser.parse_args(argv)
    args.threads = args.threads or (len(os.sched_getaffinity(0)) if args.device == "cpu" else 0)
    return args


def measure(setting: Setting, rows: dict[str, Row], rounds: int, steps: int) -> dict[str, list[Lap]]:
    """Measure laps of every row, round by round."""
    laps: dict[str, list[Lap]] = {name: [] for name in rows}
    with workers(setting.device, len(rows)) as started:
        worker_of = dict(zip(rows, started, strict=True))
        for name, worker in worker_of.items():
            function, fields = rows[name]
            worker.start(f"contenders:{function}", dataclasses.replace(setting, fields=fields))
            worker.receive()
        for number in range(rounds):
            for name, worker in worker_of.items():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                laps[name].append(worker.run(steps))
    return laps


def summarize(setting: Setting, laps: dict[str, list[Lap]], args: argparse.Namespace) -> dict[str, Any]:
    """Return all figures: rates, ratios, profile, settings and environment."""
    tokens, ours = setting.windows * setting.tokens, next(iter(laps.values()))
    rows = {}
    for name, found in laps.items():
        rows[name] = {
            "tokens_per_second": statistics.median(tokens * lap.steps / lap.wall for lap in found),
            "tokens_per_processor_second": statistics.median(tokens * lap.steps / lap.processor for lap in found),
            "ours_is": ratios([(other.wall, mine.wall) for other, mine in zip(found, ours, strict=True)]),
            "ours_is_by_processor_time": ratios(
                [(other.processor, mine.processor) for other, mine in zip(found, ours, strict=True)]
            ),
            "peak_gigabytes": max(lap.peak_bytes for lap in found) / 1e9,
        }
    losses = [found[0].first_loss for found in laps.values()]
    settings = {name: value for name, value in vars(args).items() if name not in ("json",)}
    return {
        "settings": settings,
        "rows": rows,
        "profile": profile(laps),
        "largest_first_loss_difference": max(losses) - min(losses),
        "environment": describe_environment(1),
    }


def ratios(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return median, minimum and maximum of first / second."""
    quotients = [first / second for first, second in pairs]
    return {"median": statistics.median(quotients), "min": min(quotients), "max": max(quotients)}


def profile(laps: dict[str, list[Lap]]) -> dict[str, float]:
    """Return the seconds of a step by part. The engine's part is the extra time of DeepSpeed."""
    bare, ours = laps[PARTS], next(iter(laps.values()))
    parts = {name: statistics.median(lap.parts[name] / lap.steps for lap in bare) for name in bare[0].parts}
    waits = statistics.median(lap.parts["data wait"] / lap.steps for lap in ours)
    whole = statistics.median(lap.wall / lap.steps for lap in ours)
    return {**parts, "data wait": waits, "engine and communication": whole - waits - sum(parts.values()), "step": whole}


def as_text(report: dict[str, Any]) -> str:
    """Return the two tables."""
    settings, environment = report["settings"], report["environment"]
    lines = [
        "{preset}, {precision}, {device}, {windows} windows of {window} tokens a step, {threads} threads, "
        "{rounds} rounds of {steps} steps".format(**settings),
        f"commit {environment.get('commit')}; the first step's losses differ by at most "
        f"{report['largest_first_loss_difference']:.1e}",
        f"{'':<26}{'tokens/s':>10}  {'ours is':<20}  {'by processor time':<20}{'peak memory':>12}",
    ]
    for name, row in report["rows"].items():
        found = (row["ours_is"], row["ours_is_by_processor_time"])
        by = ["{median:.2f} x ({min:.2f}-{max:.2f})".format(**ratio) for ratio in found]
        lines.append(
            f"{name:<26}{row['tokens_per_second']:>10.0f}  {by[0]:<20}  {by[1]:<20}{row['peak_gigabytes']:>9.2f} GB"
        )
    whole = report["profile"]["step"]
    lines += ["", f"{'where a step of ours goes':<26}{'seconds':>10}{'share':>8}"]
    lines += [f"{name:<26}{seconds:>10.3f}{seconds / whole:>8.1%}" for name, seconds in report["profile"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
