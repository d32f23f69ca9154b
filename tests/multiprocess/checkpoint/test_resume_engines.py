"""A stopped run resumes bit for bit with every engine: DeepSpeed's own, and `DeviceEngine` at ZeRO stages 0 and 1."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, read_metrics, run_ranks, write_prepared

from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.model.build import build_model, transformers_config
from dnabert_rm.tokenizer import KmerTokenizer

FLAGS = shlex.split(
    "--preset tiny --steps 12 --global-batch 8 --window 66 --log-every 1 --save-every 100 --model.dropout 0.1 "
    "--model.num_layers 1 --model.hidden_size 64 --train.threads_per_rank 1"
)
CASES = [
    "--ds-config zero0 --precision fp32",
    "--ds-config zero1 --precision bf16",
    "--ds-config zero1 --precision bf16 --micro-batch 1 --model.architecture modernbert",
    "--ds-config zero1 --precision fp32 --micro-batch 2",
    "--ds-config zero2 --precision bf16 --micro-batch 2",
    "--ds-config zero3 --precision bf16 --micro-batch 1",
    "--ds-config zero1 --precision bf16 --global-batch 16 --micro-batch 2 --train.batch_start 4 "
    "--train.batch_warmup_steps 9",
]
"""The last one has one micro-batch a step at first, and four at the end."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 2000) for _ in range(4)] for _ in range(3)], k=4)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_equals_one_without_a_stop(prepared: Path, tmp_path: Path, case: str) -> None:
    words = [*FLAGS, *case.split(), "--data", str(prepared)]
    run_ranks(2, *words, "--output", tmp_path / "whole")
    for last in ("2", "7", "12"):
        run_ranks(2, *words, "--output", tmp_path / "run", "--stop-after", last)
    rows = {name: read_metrics(tmp_path / name) for name in ("whole", "run")}
    whole, resumed = ([(row["loss"], row["grad_norm"]) for row in found] for found in rows.values())
    assert len(whole) == 12 and resumed == whole


def test_dropout_is_on_from_the_first_step_of_a_run_with_initial_weights(prepared: Path, tmp_path: Path) -> None:
    """transformers returns loaded models for evaluation. Models of resumed runs aren't loaded by it."""
    sizes = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "intermediate_size": 128, "max_positions": 128}
    config = transformers_config(architecture="bert", vocab_size=vocab_size(4), dropout=0.1, **sizes)
    build_model(config, seed=3).save_pretrained(tmp_path / "start")
    KmerTokenizer(4).save_pretrained(tmp_path / "start")
    words = shlex.split("--preset tiny --steps 4 --global-batch 8 --window 66 --log-every 1 --train.threads_per_rank 1")
    words += ["--init-from", str(tmp_path / "start"), "--data", str(prepared)]
    for name, dropout in (("whole", "0.1"), ("without", "0"), ("run", "0.1")):
        more = ["--stop-after", "2"] if name == "run" else []
        run_ranks(1, *words, "--model.dropout", dropout, "--output", tmp_path / name, *more)
    run_ranks(1, *words, "--model.dropout", "0.1", "--output", tmp_path / "run")
    losses = {name: [row["loss"] for row in read_metrics(tmp_path / name)] for name in ("whole", "without", "run")}
    assert losses["whole"] == losses["run"]
    assert losses["whole"][0] != losses["without"][0]
