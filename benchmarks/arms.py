"""Run many small pretraining arms on a CPU, a few at a time, and compare them in bits per base.

    python benchmarks/arms.py run benchmarks/arms.txt --output runs/arms --results dev/arms.csv --slots 2
    python benchmarks/arms.py table --results dev/arms.csv [--match losses]

A line of arms.txt is a name that ends in the seed, and the flags of pretraining, for example

    losses/bert/token/1 --data prepared --preset tiny --model.architecture bert --steps 1000 --seed 1

Each arm has one thread and its own process, forked from one that has imported everything. When it ends, its last
validation is appended to the results as one row. `run` can be repeated, on another machine too: arms with a row are
skipped, unfinished ones resume. `table` shows the mean over seeds and half its 95 % interval. An arm has left the
plateau of single k-mers at the first validation with more than half of the bases right at the narrowest span.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

LEFT_AT_ACCURACY = 0.5
COMMON = "--train.threads_per_rank 1 --workers 0 --ds-config zero0 --precision fp32 --train.keep_last 1"
FIGURES = ("left_at_step", "token_loss", "base_accuracy", "bits_1", "bits_3", "bits_5", "bits_9")
FIELDS = ("name", "steps", "tokens", *FIGURES, "commit", "fingerprint", "processor", "date", "flags")


def main(argv: list[str] | None = None) -> int:
    """Run or compare the arms. Return exit code 1 if an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the arms that have no row yet")
    run.add_argument("arms", type=Path, metavar="ARMS.txt")
    run.add_argument("--output", type=Path, required=True, help="folder of the arms' run folders")
    run.add_argument("--slots", type=int, default=2, help="arms that run at the same time (%(default)s)")
    run.add_argument("--match", default="", help="only arms whose name contains this")
    compare = commands.add_parser("table", help="compare the arms over their seeds")
    compare.add_argument("--match", default="", help="only arms whose name contains this")
    for command in (run, compare):
        command.add_argument("--results", type=Path, required=True, metavar="CSV", help="one row per finished arm")
    args = parser.parse_args(argv)
    if args.command == "table":
        print(table([row for row in read_results(args.results) if args.match in row["name"]]))
        return 0
    done = {row["name"] for row in read_results(args.results)}
    arms = read_arms(args.arms)
    return run_all({n: flags for n, flags in arms.items() if args.match in n and n not in done}, args)


def read_arms(path: Path) -> dict[str, list[str]]:
    """Return the flags of each arm, keyed by name. Blank lines and `#` comments are skipped."""
    lines = [shlex.split(line, comments=True) for line in path.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def read_results(path: Path) -> list[dict[str, str]]:
    """Return the rows of finished arms, or none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_all(arms: dict[str, list[str]], args: argparse.Namespace) -> int:
    """Run the arms and append their results. Return exit code 1 if one of them failed."""
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    import torch

    import dnabert_rm.train.trainer  # noqa: F401  # imported before the fork, so that each arm starts at once

    torch.set_num_threads(1)
    waiting = list(arms)
    running: dict[int, str] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < args.slots:
            name = waiting.pop(0)
            running[_start(arms[name], args.output / name)] = name
            print(f"{time.strftime('%H:%M:%S')} {name}: started", file=sys.stderr)
        process, status = os.wait()
        name = running.pop(process)
        if status:
            failed.append(name)
        else:
            try:
                append_result(args.results, result_row(name, args.output / name, arms[name]))
            except (OSError, LookupError, TypeError, ValueError) as error:
                # The other arms go on.
                print(f"{name}: no row: {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(name)
        print(f"{time.strftime('%H:%M:%S')} {name}: {'failed' if status else 'finished'}", file=sys.stderr)
    return 1 if failed else 0


def _start(flags: list[str], run: Path) -> int:
    """Fork a process that runs one arm, with its output in `log.txt`. Return the process id."""
    run.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(run / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from dnabert_rm.cli.main import main as dnabert_rm

        code = dnabert_rm(["pretrain", *shlex.split(COMMON), *flags, "--output", str(run)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def result_row(name: str, run: Path, flags: list[str]) -> dict[str, Any]:
    """Return an arm's row: its last validation, and what is needed to repeat it."""
    rows = _rows(run)
    last = [row for row in rows if row.get("validation")][-1]
    values = last["validation"]
    span = min((key for key in values if key.startswith("span_")), key=lambda key: int(key[5:]))
    state = json.loads(max((run / "checkpoints").glob("step_*/state.json")).read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "steps": last["step"] + 1,
        "tokens": last["consumed_tokens"],
        "left_at_step": plateau_step(rows, span),
        "token_loss": round(values[span]["loss"], 4),
        "base_accuracy": round(values[span]["base_accuracy"], 4),
        **{f"bits_{hidden}": round(bits, 5) for hidden, bits in values["bits_per_base"].items()},
        "commit": environment["commit"][:10],
        "fingerprint": state["fingerprint"][:12],
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
        "flags": shlex.join(flags),
    }


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Append a row, after the header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table: one line per arm, with the mean over its seeds ± half the 95 % interval."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["name"].rpartition("/")[0], row["steps"]), []).append(row)
    lines = [f"| arm | steps | seeds | {' | '.join(FIGURES)} |", "| --- " * (3 + len(FIGURES)) + "|"]
    for (name, steps), found in sorted(groups.items()):
        cells = [_mean(figure, [row[figure] for row in found]) for figure in FIGURES]
        lines.append(f"| {name} | {steps} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(figure: str, values: list[str]) -> str:
    """Return the mean, ± half the 95 % interval if there are several values."""
    if "" in values:
        return f"never in {values.count('')} of {len(values)}" if figure == "left_at_step" else "not measured"
    numbers = [float(value) for value in values]
    digits = 0 if all(number.is_integer() for number in numbers) else 4
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    if len(numbers) < 2:
        return mean
    from scipy.stats import t

    half = t.ppf(0.975, len(numbers) - 1) * statistics.stdev(numbers) / math.sqrt(len(numbers))
    return f"{mean} ± {half:.{digits}f}"


def plateau_step(rows: list[dict[str, Any]], span: str) -> int | None:
    """Return the number of steps after which a run first had more than half of the bases right, or None."""
    for row in rows:
        if (values := (row.get("validation") or {}).get(span)) and values["base_accuracy"] > LEFT_AT_ACCURACY:
            return int(row["step"]) + 1
    return None


def _processor() -> str:
    """Return the processor's name, because digits depend on its kind."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
