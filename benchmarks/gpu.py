"""Benchmark of training on one NVIDIA GPU in under nine minutes: `bash benchmarks/gpu.sh` runs it.

It measures the device's peak rate of matrix products and checks that training is correct. Then it measures rows until
the time is up, the most important first. Each row runs in a separate process. If a row fails, the reason is recorded
and the others continue. `--rehearse` runs every path through the code on a CPU, without torch.compile; its figures are
meaningless.
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

import gpu_checks
from gpu_rows import Row, make_rows, shrink
from setting import Setting, prepare
from workers import FailedError, Lap, Worker

from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.model.flops import model_shape, peak_flops, training_flops_per_step

PEAK = peak_flops("h100") or 0.0
"""Peak FLOP/s for the MFU: data sheet of an H100 or H200 (SXM), bf16."""
ROW_SECONDS = 90.0
"""Longest time of a row, its start included."""
LAP_SECONDS = 1.5
"""Approximate length of a lap."""
LAPS = 3
"""Laps per row."""
TRACED_STEPS = 3
SHORTEST_ROW = 12.0
"""A row is skipped if fewer seconds are left."""


class Bench:
    """The time budget, and workers. The next worker imports its libraries while the current one runs."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self._end = device, time.monotonic() + seconds
        self._next = Worker(device)

    @property
    def seconds_left(self) -> float:
        """Remaining seconds of the budget."""
        return self._end - time.monotonic()

    def worker(self) -> Worker:
        """Return a fresh worker, and start the next one."""
        worker, self._next = self._next, Worker(self.device)
        return worker

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function in a fresh worker and return its result."""
        if self.seconds_left <= 0:
            raise FailedError("no time left")
        worker = self.worker()
        try:
            worker.start(function, *arguments)
            return worker.receive(max(1.0, min(ROW_SECONDS, self.seconds_left)))
        finally:
            worker.stop()

    def close(self) -> None:
        """End the waiting worker."""
        self._next.stop(patience=0)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and write the JSON. Return exit code 1 if a check fails or no row was measured."""
    args = parse(argv)
    device = "cpu" if args.rehearse else "cuda"
    if args.rehearse:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    report: dict[str, Any] = {"rehearsal": args.rehearse, "checks": [], "rows": [], "skipped": []}
    bench = Bench(device, args.seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = str(prepare(Path(folder), 200_000 if args.rehearse else 16_000_000))
            rows = [row for row in make_rows(data) if args.only in row.name]
            (Path(folder) / "few").mkdir()
            few = str(prepare(Path(folder) / "few", gpu_checks.BASES))
            checked = Setting(few, "tiny", device=device, tokens=64, threads=1 if args.rehearse else 0)
            run(bench, checked, shrink(rows) if args.rehearse else rows, report, args.output)
    finally:
        bench.close()
    print(as_text(report))
    measured = [row for row in report["rows"] if "failed" not in row]
    return 0 if measured and all(check["holds"] for check in report["checks"]) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520, help="time budget (%(default)s)")
    parser.add_argument("--output", default="gpu_benchmark.json", help="JSON file to write (%(default)s)")
    parser.add_argument("--only", default="", help="only rows with this text in their name")
    parser.add_argument("--rehearse", action="store_true", help="run every path through the code on a CPU, tiny model")
    return parser.parse_args(argv)


def run(bench: Bench, checked: Setting, rows: list[Row], report: dict[str, Any], output: str) -> None:
    """Fill the report, and write it after each row, so that a later failure loses nothing."""
    try:
        report["ceiling"] = bench.call("gpu_checks:matrix_ceiling", checked)
        report["checks"] = gpu_checks.check(bench.call, checked)
    except FailedError as error:
        report["checks"].append({"check": "the checks run to their end", "holds": False, "reason": str(error)})
    for row in rows:
        if bench.seconds_left < SHORTEST_ROW:
            report["skipped"].append(row.name)
            continue
        try:
            result = measure(bench, row, LAP_SECONDS if bench.device == "cuda" else 0.0)
        except FailedError as error:
            result = {"failed": str(error)}
        report["rows"].append({"row": row.name, **result})
        print(f"{row.name}: {result}; {bench.seconds_left:.0f} s left", file=sys.stderr)
        Path(output).write_text(json.dumps(report | {"environment": environment()}, indent=1) + "\n")


def measure(bench: Bench, row: Row, lap_seconds: float) -> dict[str, Any]:
    """Measure some laps of a row; the figures are those of the median lap."""
    worker, end = bench.worker(), time.monotonic() + min(ROW_SECONDS, bench.seconds_left)
    try:
        worker.start(f"contenders:{row.function}", row.setting)
        worker.receive(end - time.monotonic())
        once = worker.run(1, end - time.monotonic())
        steps = max(1, min(200, int(lap_seconds / once.wall)))
        # A rehearsal needs no exact figures.
        num_laps = LAPS if lap_seconds else 1
        laps = [worker.run(steps, max(1.0, end - time.monotonic())) for _ in range(num_laps)]
        traced = worker.run(TRACED_STEPS, max(1.0, end - time.monotonic()), traced=True)
    finally:
        worker.stop()
    return figures(row, laps) | busy(traced, median(lap.wall / lap.steps for lap in laps))


def busy(traced: Lap, seconds: float) -> dict[str, Any]:
    """Return the kernels' share of a step's `seconds`, the launches per step and the longest kernels.

    They show whether the GPU or the host is the bottleneck.
    """
    kernels = sorted(((spent, calls, name) for name, (spent, calls) in traced.kernels.items()), reverse=True)
    return {
        "gpu_busy_share": sum(spent for spent, _, _ in kernels) / traced.steps / seconds,
        "launches_a_step": sum(calls for _, calls, _ in kernels) / traced.steps,
        "longest_kernels": [
            {"kernel": name[:80], "milliseconds_a_step": 1000 * spent / traced.steps, "launches": calls / traced.steps}
            for spent, calls, name in kernels[:8]
        ],
    }


def figures(row: Row, laps: list[Lap]) -> dict[str, Any]:
    """Return rates, FLOP/s and memory of a row."""
    setting = row.setting
    seconds = median(lap.wall / lap.steps for lap in laps)
    ours = row.function == "ours"
    masked = laps[-1].parts.get("masked", 0.0) / laps[-1].steps
    # FLOPs that the row itself needs: ours predicts only masked tokens, transformers predicts all tokens.
    predicted = masked if ours else setting.windows * setting.tokens
    shape = model_shape(setting.config("unused").model, vocab_size(6))
    flops = training_flops_per_step(shape, setting.windows, setting.tokens, predicted) / seconds
    rates = [setting.windows * setting.tokens * lap.steps / lap.wall for lap in laps]
    result = {
        "preset": setting.preset,
        "precision": setting.precision,
        "windows": setting.windows,
        "tokens": setting.tokens,
        "fields": setting.fields,
        "synthetic": setting.synthetic,
        "steps": laps[0].steps,
        "seconds_a_step": seconds,
        "tokens_per_second": median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
        "tflops": flops / 1e12,
        "peak_gigabytes": max(lap.peak_bytes for lap in laps) / 1e9,
        "first_loss": laps[0].first_loss,
    }
    if setting.precision != "fp32":
        result["mfu"] = flops / PEAK
    if ours:
        result["data_wait_share"] = sum(lap.parts["data wait"] for lap in laps) / sum(lap.wall for lap in laps)
    return result


@functools.cache
def environment() -> dict[str, Any]:
    """Return versions, commit, hardware and command line."""
    from dnabert_rm.utils.system_info import describe_environment

    return describe_environment(1)


def as_text(report: dict[str, Any]) -> str:
    """Return the table."""
    lines = []
    if report["rehearsal"]:
        lines.append("REHEARSAL on a CPU with a tiny model: the figures are meaningless")
    if ceiling := report.get("ceiling"):
        best = ", ".join(f"{size}: {flops / 1e12:.1f}" for size, flops in ceiling["flops_by_size"].items())
        lines.append(f"{ceiling['device']}; bf16 matrix products, TFLOP/s by size: {best}")
    lines += [f"{'ok' if check['holds'] else 'FAILED':<7}{check['check']}" for check in report["checks"]]
    lines.append(
        f"{'':<30}{'tokens/s':>10}{'TFLOP/s':>9}{'MFU':>7}{'of ceiling':>11}{'GB':>7}{'windows':>8}{'GPU busy':>9}"
    )
    top = report.get("ceiling", {}).get("flops", float("nan")) / 1e12
    for row in report["rows"]:
        if "failed" in row:
            lines.append(f"{row['row']:<30}FAILED: {row['failed'][:88]}")
            continue
        mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
        rates = f"{row['tokens_per_second']:>10.0f}{row['tflops']:>9.1f}{mfu:>7}{row['tflops'] / top:>11.1%}"
        lines.append(
            f"{row['row']:<30}{rates}{row['peak_gigabytes']:>7.1f}{row['windows']:>8}{row['gpu_busy_share']:>9.0%}"
        )
    if report["skipped"]:
        lines.append(f"no time left for: {'; '.join(report['skipped'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    # Without this, large rows can run out of memory because of fragmentation.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
