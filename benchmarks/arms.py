"""Run many small pretraining arms on a CPU, a few at a time, and compare them in bits per base.

    python benchmarks/arms.py run ARMS.txt --output runs/arms --slots 2
    python benchmarks/arms.py table ARMS.txt --output runs/arms --data prepared

A line of ARMS.txt is a name and the flags of pretraining, for example

    bert/token/1 --data prepared --preset tiny --model.architecture bert --steps 1000 --seed 1 --validation.every 25

Each arm has one thread and its own process, forked from one that has imported everything. `run` can be repeated:
finished arms are skipped, unfinished ones resume. `table` exports the finished arms and measures them with `evaluate
bits`. It also prints the step at which an arm left the plateau of single k-mers: the first validation with more than
half of the bases right at the narrowest span.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LEFT_AT_ACCURACY = 0.5
COMMON = "--train.threads_per_rank 1 --workers 0 --ds-config zero0 --precision fp32 --train.keep_last 1"


def main(argv: list[str] | None = None) -> int:
    """Run or compare the arms. Return exit code 1 if an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("arms", type=Path, metavar="ARMS.txt")
    parser.add_argument("--output", type=Path, required=True, help="folder of the arms' run folders")
    parser.add_argument("--slots", type=int, default=2, help="arms that run at the same time (%(default)s)")
    parser.add_argument("--data", help="prepared folder for `table`")
    args = parser.parse_args(argv)
    arms = read_arms(args.arms)
    if args.action == "run":
        return run_all(arms, args.output, args.slots)
    if not args.data:
        parser.error("table needs --data")
    print(table([name for name in arms if is_finished(args.output / name)], args.output, args.data))
    return 0


def read_arms(path: Path) -> dict[str, list[str]]:
    """Return the flags of each arm, keyed by name. Blank lines and `#` comments are skipped."""
    lines = [shlex.split(line, comments=True) for line in path.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def is_finished(run: Path) -> bool:
    """Return whether an arm has ended with all its steps."""
    return (run / "finished").is_file()


def run_all(arms: dict[str, list[str]], output: Path, slots: int) -> int:
    """Run all unfinished arms. Return exit code 1 if one of them failed."""
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    import torch

    import dnabert_rm.train.trainer  # noqa: F401  # imported before the fork, so that each arm starts at once

    torch.set_num_threads(1)
    waiting = [name for name in arms if not is_finished(output / name)]
    running: dict[int, str] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < slots:
            name = waiting.pop(0)
            running[_start(arms[name], output / name)] = name
            print(f"{time.strftime('%H:%M:%S')} {name}: started", file=sys.stderr)
        process, status = os.wait()
        name = running.pop(process)
        failed += [name] if status else []
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
        if code == 0:
            (run / "finished").touch()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def table(names: list[str], output: Path, data: str) -> str:
    """Return a table of each arm: bits per base, held-out token loss, base accuracy, and when it left the plateau."""
    lines = ["arm | left at step | loss | base accuracy | bits by hidden bases", "---|---|---|---|---"]
    for name in names:
        run = output / name
        last = [row for row in _rows(run) if row.get("validation")][-1]["validation"]
        span = min((key for key in last if key.startswith("span_")), key=lambda key: int(key[5:]))
        left = plateau_step(_rows(run), span)
        bits = " ".join(f"{value:.4f}" for value in _bits(run, data).values())
        lines.append(
            f"{name} | {'never' if left is None else left} | {last[span]['loss']:.3f} | "
            f"{last[span]['base_accuracy']:.3f} | {bits}"
        )
    return "\n".join(lines)


def plateau_step(rows: list[dict[str, Any]], span: str) -> int | None:
    """Return the number of steps after which a run first had more than half of the bases right, or None."""
    for row in rows:
        if (values := (row.get("validation") or {}).get(span)) and values["base_accuracy"] > LEFT_AT_ACCURACY:
            return int(row["step"]) + 1
    return None


def _bits(run: Path, data: str) -> dict[str, float]:
    """Return bits per base by number of hidden bases. The result is kept beside the run's metrics."""
    stored = run / "bits.json"
    if not stored.is_file():
        command = [sys.executable, "-m", "dnabert_rm"]
        if not (run / "export").is_dir():
            subprocess.run([*command, "export", run, "--output", run / "export"], check=True, capture_output=True)
        words = ["evaluate", "bits", "--model", run / "export", "--data", data, "--output", stored]
        subprocess.run([*command, *words], check=True, capture_output=True)
    rows = json.loads(stored.read_text(encoding="utf-8"))["rows"]
    found: dict[str, float] = next(row["bits"] for row in rows if row["name"] == str(run / "export"))
    return found


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
