"""The training benchmarks run to their end here, so that they do where time is dear; their speeds are not looked at."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ROOT, on_ranks, random_bases, run_cli, write_prepared

DECIDING = "3 base, flat gradients, late reads"


def test_every_row_of_the_gpu_benchmark_runs_or_says_why_not(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", "--rehearse", "--output", report],
        cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert len(found["checks"]) == 8 and all(check["holds"] for check in found["checks"]), found["checks"]
    assert {row["row"] for row in found["rows"] if "not_at_hand" in row} == {"base, flash_attention_2"}
    failed = {row["row"]: row["failed"] for row in found["rows"] if "failed" in row}
    assert failed.keys() == {"base, fp16"} and "fp16 needs a GPU" in failed["base, fp16"]
    measured = {row["row"]: row for row in found["rows"] if "milliseconds_a_step" in row}
    assert len(measured) == 15 and not found["skipped"] and not found["left_out"]
    assert all(row["tokens_per_second"] > 0 and 7 < row["first_loss"] < 10 for row in measured.values()), measured
    # The row after the failed one ran in a fresh process.
    assert list(measured)[-1] == "base, fp32, ZeRO-0"
    # The head on masked tokens only: what transformers does takes more operations.
    operations = {name: row["tflops"] * row["milliseconds_a_step"] for name, row in measured.items()}
    assert operations[DECIDING] < 0.7 * operations["11 bare loop"]
    assert measured[DECIDING]["predicted_milliseconds"] == [60]
    assert found["device"]["products_flops"]["base, 64 to 64"]["wgrad"] > 0
    # No kernel of a GPU ran, so the rule takes the GPU as idle.
    with gzip.open(found["host_trace"]) as trace:
        assert json.load(trace)["traceEvents"]
    assert "REHEARSAL" in done.stdout and "11 Hugging Face Trainer" in done.stdout


def test_time_that_runs_out_leaves_rows_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run_cli("benchmarks/gpu.py", "--rehearse", "--seconds", "0", "--output", report, "--only", "small")
    assert done.returncode == 1
    assert "no time left for: small, compiled" in done.stdout
    assert json.loads(report.read_text())["skipped"] == ["small, compiled", "small"]


def reads_of_a_step(ranks: Any, data: str, own_engine: bool) -> dict[str, Any]:
    """Return the benchmark's check that a step reads nothing back, for our engine or DeepSpeed's own."""
    sys.path.append(str(ROOT / "benchmarks"))
    from gpu_checks import steady_step
    from setting import Setting

    fields = {"model": {"compile": False}, "train": {"ds_config": "zero1"}}
    setting = Setting(data, "tiny", "bf16", tokens=64, threads=1, own_engine=own_engine, fields=fields)
    return steady_step(ranks, setting, None)[0]


@pytest.mark.parametrize("own_engine", [True, False])
def test_the_check_of_reads_fails_for_deepspeeds_own_engine(tmp_path: Path, own_engine: bool) -> None:
    write_prepared(tmp_path / "data", [[random_bases(np.random.default_rng(0), 20_000)]])
    check = on_ranks(1, reads_of_a_step, str(tmp_path / "data"), own_engine)[0]
    assert check["holds"] == own_engine and (check["scalar_reads"] == 0) == own_engine, check


@pytest.mark.parametrize(("milliseconds", "busy", "left_out"), [(65, 0.91, 0), (67, 0.95, 4), (60, 0.89, 4)])
def test_rows_that_say_little_are_left_out_if_the_gpu_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milliseconds: float, busy: float, left_out: int
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    def measured(_bench: Any, row: Any, host_trace: Path) -> dict[str, Any]:
        waits = row.name == DECIDING and gpu.host_is_limit(milliseconds / 1000, busy)
        return {"milliseconds_a_step": milliseconds, **({"host_trace": str(host_trace)} if waits else {})}

    rows = [row for row in gpu.make_rows("data", "few") if row.name[0] in "3456789" and row.has_laps]
    report: dict[str, Any] = {"notes": [], "checks": [], "rows": [], "left_out": [], "skipped": []}
    monkeypatch.setattr(gpu, "measure", measured)  # these rows need a GPU
    gpu.run(types.SimpleNamespace(device="cuda", seconds_left=100.0), rows, report, tmp_path / "report.json")
    assert [name[0] for name in report["left_out"]] == ["5", "6", "7", "8"][:left_out]
    assert [row["row"][0] for row in report["rows"]] == list("34999" if left_out else "345678999")
    assert len(report["notes"]) == (left_out > 0)
    assert json.loads((tmp_path / "report.json").read_text())["left_out"] == report["left_out"]


def test_all_contenders_of_the_step_benchmark_start_from_one_loss() -> None:
    done = run_cli(
        "benchmarks/train_step.py", "--preset", "tiny", "--windows", "2", "--window", "64", "--rounds", "1",
        "--bases", "20000", "--threads", "1", "--json", "--attention", "eager",
    )  # fmt: skip
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["largest_first_loss_difference"] < 1e-4
    assert list(report["rows"]) == [
        "ours, ZeRO-0", "ours, ZeRO-1", "ours, ZeRO-3", "Hugging Face Trainer", "Trainer, set as ours",
        "bare transformers loop", "ours without DeepSpeed",
    ]  # fmt: skip
    assert report["profile"]["encoder, backward"] > 0
    ratio = report["rows"]["Hugging Face Trainer"]["ours_is"]["median"]
    assert done.returncode == (0 if ratio >= 1.25 else 1), done.stderr
