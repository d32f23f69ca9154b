"""The training benchmarks run to their end here, so that they do where time is dear; their speeds are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support import ROOT, run_cli


def test_every_row_of_the_gpu_benchmark_runs_or_says_why_not(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", "--rehearse", "--output", report],
        cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert len(found["checks"]) == 5 and all(check["holds"] for check in found["checks"]), found["checks"]
    failed = {row["row"]: row["failed"] for row in found["rows"] if "failed" in row}
    assert failed.keys() == {"base, flash_attention_2", "base, fp16"}
    assert "FlashAttention2" in failed["base, flash_attention_2"] and "fp16 needs a GPU" in failed["base, fp16"]
    measured = {row["row"]: row for row in found["rows"] if "failed" not in row}
    assert len(measured) == 10 and not found["skipped"]
    assert all(row["tokens_per_second"] > 0 and 7 < row["first_loss"] < 10 for row in measured.values()), measured
    # The head on masked tokens only: what transformers does takes more operations.
    operations = {name: row["tflops"] * row["seconds_a_step"] for name, row in measured.items()}
    assert operations["base"] < 0.7 * operations["base, bare loop"]
    assert "REHEARSAL" in done.stdout and "base, Hugging Face Trainer" in done.stdout


def test_time_that_runs_out_leaves_rows_named(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run_cli("benchmarks/gpu.py", "--rehearse", "--seconds", "0", "--output", report, "--only", "small")
    assert done.returncode == 1
    assert "no time left for: small, compiled" in done.stdout


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
