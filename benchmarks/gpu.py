"""Benchmark of training on one NVIDIA GPU in under nine minutes: `bash benchmarks/gpu.sh` runs it.

It measures the rows of `gpu_rows.py` in their order until the time is up, and prints a prediction beside each figure.
Rows of one preset share a process. If a row fails, the reason is recorded, and a fresh process continues.
`--rehearse` runs every path through the code on a CPU, without torch.compile; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from gpu_rows import AFTER_DECIDING, DECIDING, DEVICE, Row, host_is_limit, make_rows, shrink
from gpu_table import as_text, busy, device_note, figures
from setting import prepare
from workers import KERNELS, FailedError, Worker

ROW_SECONDS = 90.0
"""Longest time of a row, its start included."""
LAP_SECONDS = 1.5
"""Approximate length of a lap."""
LAPS = 3
"""Laps per row."""
TRACED_STEPS = 3
SHORTEST_ROW = 12.0
"""A row is skipped if fewer seconds are left."""
FEW_BASES = 1000
"""Size of the genome of the correctness checks: few windows, so that 20 steps reduce the loss."""
NO_GROUP = ("peers",)
"""Groups of rows that run without a process group."""
Report = dict[str, Any]


class Bench:
    """The time budget, and workers. The next worker imports its libraries while the current one runs."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self._end = device, time.monotonic() + seconds
        self._next = Worker(device)
        self._current: Worker | None = None
        self._group = ""

    @property
    def seconds_left(self) -> float:
        """Remaining seconds of the budget."""
        return self._end - time.monotonic()

    def worker(self, group: str) -> Worker:
        """Return the worker of a group of rows, a fresh one if another group had the last worker."""
        if self._current and self._group == group:
            return self._current
        self.end_worker()
        self._current, self._next, self._group = self._next, Worker(self.device), group
        self._current.start("gpu_session:serve", 0 if self.device == "cuda" else 1, group not in NO_GROUP)
        return self._current

    def end_worker(self, patience: float = 10) -> None:
        """End the current worker; kill it after `patience` seconds."""
        if self._current:
            self._current.stop(patience)
        self._current = None

    def close(self) -> None:
        """End all workers."""
        self.end_worker()
        self._next.stop(patience=0)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and write the JSON. Return exit code 1 if a check fails or no row was measured."""
    args = parse(argv)
    if args.rehearse:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    report: Report = {"rehearsal": args.rehearse, "notes": [], "checks": [], "rows": [], "left_out": [], "skipped": []}
    bench = Bench("cpu" if args.rehearse else "cuda", args.seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = str(prepare(Path(folder), 200_000 if args.rehearse else 8_000_000))
            (Path(folder) / "few").mkdir()
            few = str(prepare(Path(folder) / "few", FEW_BASES))
            rows = [row for row in make_rows(data, few) if args.only in row.name]
            run(bench, shrink(rows) if args.rehearse else rows, report, Path(args.output))
    finally:
        bench.close()
    print(as_text(report))
    measured = [row for row in report["rows"] if "milliseconds_a_step" in row]
    return 0 if measured and all(check["holds"] for check in report["checks"]) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520, help="time budget (%(default)s)")
    parser.add_argument("--output", default="gpu_benchmark.json", help="JSON file to write (%(default)s)")
    parser.add_argument("--only", default="", help="only rows with this text in their name")
    parser.add_argument("--rehearse", action="store_true", help="run every path through the code on a CPU, tiny model")
    return parser.parse_args(argv)


def run(bench: Bench, rows: list[Row], report: Report, output: Path) -> None:
    """Fill the report, and write it after each row, so that a later failure loses nothing."""
    host_trace = output.with_suffix(".host_trace.json.gz").absolute()
    for row in rows:
        if bench.seconds_left < SHORTEST_ROW:
            report["skipped"].append(row.name)
        elif report["left_out"] and row.name in report["left_out"]:
            continue
        elif not row.is_at_hand:
            report["rows"].append({"row": row.name, "not_at_hand": f"the package {row.package} is not installed"})
        else:
            result = record(bench, row, host_trace, report)
            print(f"{row.name}: {result}; {bench.seconds_left:.0f} s left", file=sys.stderr)
            if "host_trace" in report and row.name == DECIDING and bench.device == "cuda":
                report["left_out"] = [later.name for later in rows if later.name.startswith(AFTER_DECIDING)]
        output.write_text(json.dumps(report | {"environment": environment()}, indent=1) + "\n")


def record(bench: Bench, row: Row, host_trace: Path, report: Report) -> Any:
    """Measure a row, add its result to the report, and return the result."""
    try:
        result = measure(bench, row, host_trace)
    except FailedError as error:
        bench.end_worker(patience=2)  # its process has ended or hangs
        reason = str(error)
        if row.has_laps:
            report["rows"].append({"row": row.name, "predicted_milliseconds": row.predicted, "failed": reason})
        else:
            report["checks"].append({"check": row.name, "holds": False, "reason": reason})
        return {"failed": reason}
    if row.name == DEVICE:
        report["device"] = result
        report["notes"] += [note] if (note := device_note(result)) else []
    elif row.has_laps:
        report["rows"].append({"row": row.name, **result})
        if "host_trace" in result:
            report["host_trace"] = result["host_trace"]
            report["notes"].append(f"the GPU waits for the host in row {row.name}: see {result['host_trace']}")
    else:
        report["checks"] += result
    return result


def measure(bench: Bench, row: Row, host_trace: Path) -> Any:
    """Return the result of a row's function, or measure some laps of training.

    If the GPU waits for the host in the deciding row, also write a trace of the host to `host_trace`.
    """
    worker, end = bench.worker(row.group), time.monotonic() + min(ROW_SECONDS, bench.seconds_left)

    def seconds_left() -> float:
        return max(1.0, end - time.monotonic())

    worker.start(row.function, row.setting)
    first = worker.receive(seconds_left())
    if not row.has_laps:
        return first
    if bench.device == "cuda":
        once = worker.run(1, seconds_left())
        steps = max(1, min(200, int(LAP_SECONDS / once.wall)))
        laps = [worker.run(steps, seconds_left()) for _ in range(LAPS)]
    else:  # a rehearsal needs no exact figures
        laps = [worker.run(1, seconds_left())]
    traced = worker.run(TRACED_STEPS, seconds_left(), trace=KERNELS)
    seconds = median(lap.wall / lap.steps for lap in laps)
    result = figures(row, laps) | busy(traced, seconds)
    if row.name == DECIDING and host_is_limit(seconds, result["gpu_busy_share"]):
        worker.run(TRACED_STEPS, seconds_left(), trace=str(host_trace))
        result["host_trace"] = str(host_trace)
    worker.finish()
    return result


@functools.cache
def environment() -> dict[str, Any]:
    """Return versions, commit, hardware and command line."""
    from dnabert_rm.utils.system_info import describe_environment

    return describe_environment(1)


if __name__ == "__main__":
    # Without this, large rows can run out of memory because of fragmentation.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
