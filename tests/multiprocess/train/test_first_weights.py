"""A run starts with structured weights, whether the model is built whole or partitioned over the ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases, run_ranks, write_prepared
from transformers import AutoModelForMaskedLM

from dnabert_rm.export.export_model import export
from dnabert_rm.model.initial_weights import base_sum_embeddings

FLAGS = ["--preset", "tiny", "--model.num_layers", 1, "--model.hidden_size", 64, "--steps", 1, "--global-batch", 4,
         "--window", 40, "--workers", 0, "--lr", 1e-12, "--validation.every", 0,
         "--model.initial_weights", "structured", "--precision", "fp32"]  # fmt: skip


@pytest.mark.parametrize("build", ["whole", "partitioned"])
def test_the_first_weights_are_structured_on_two_ranks(build: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "prepared", [[random_bases(rng, 400) for _ in range(4)]], k=4)
    run_ranks(2, *FLAGS, "--data", tmp_path / "prepared", "--output", tmp_path / "run", "--model.build", build)
    export(tmp_path / "run", tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    expected = base_sum_embeddings(4, 64, std=0.02, seed=42)
    torch.testing.assert_close(model.get_input_embeddings().weight[5:], expected, rtol=0, atol=1e-6)
    attention = model.bert.encoder.layer[0].attention.self
    torch.testing.assert_close(attention.key.weight, attention.query.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention.key.weight.std(), torch.tensor(0.9 / 8), rtol=0.1, atol=0)
    assert not torch.equal(model.bert.embeddings.position_embeddings.weight[:5], torch.zeros(5, 64))
