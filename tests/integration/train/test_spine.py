"""The whole workflow by its commands: simulate, build, pretrain, export, fine-tune."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support import ROOT, clean_environment, free_port, read_metrics, run_cli

SCREEN_ROWS = 24


def succeed(*words: str | Path) -> str:
    """Run a Python command that must exit with 0, and return its standard output."""
    done = run_cli(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_genome_to_a_fine_tuned_model(tmp_path: Path) -> None:
    simulated, data, run, model = (tmp_path / name for name in ("simulated", "data", "run", "model"))
    succeed("-m", "data_prep", "simulate", "--out", simulated, "--bases", "300000")
    succeed("-m", "data_prep", "build", simulated / "genome.fa", "--out", data, "--k", "3")
    described = json.loads(succeed("-m", "data_prep", "inspect", data, "--json"))
    assert described["splits"]["train"]["bases"] + sum(described["left_out"].values()) == 300_000

    environment = {**clean_environment(), "DEEPSPEED_ARGS": f"--num_gpus 2 --master_port {free_port()}"}
    flags = "--preset tiny --steps 10 --global-batch 8 --window 64 --log-every 1 --phase-ends 2,4,6,8,10"
    command = ["bash", "launch_scripts/pretrain.sh", *flags.split(), "--data", str(data), "--output", str(run)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert any(line.startswith("starting step 0 of 10") for line in lines)
    assert sum(1 + len(line) // 80 for line in lines) <= SCREEN_ROWS, "\n".join(lines)
    assert [row["phase"] for row in read_metrics(run)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    printed = succeed("-m", "dnabert_rm.cli.main", "export", run, "--output", model)
    assert "stock transformers loads it" in printed
    tables = [part for name in ("train", "dev", "test") for part in (f"--{name}", simulated / f"{name}.csv")]
    limits = ["--max-steps", "3", "--batch-size", "4"]
    succeed("-m", "dnabert_rm.cli.main", "finetune", "--model", model, *tables, *limits, "--output", tmp_path / "tuned")
    scores = json.loads((tmp_path / "tuned" / "scores.json").read_text())
    assert -1 <= scores["metrics"]["test"]["mcc"] <= 1
    assert (tmp_path / "tuned" / "model" / "model.safetensors").exists()
