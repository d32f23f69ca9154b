"""The gradient of a step in half precision does not depend on the number of micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import on_ranks

K = 3
VOCAB = 4**K + 5
TOKENS = 16
NUM_WINDOWS = 512
"""Windows in the global batch. In bf16, a sum of 512 gradients is wrong by several per cent."""


def gradient_norm(ranks: Any, ds_config: str, precision: str, micro_batch: int) -> float:
    """Return the gradient norm of the first step, with `micro_batch` windows in each micro-batch."""
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.data.batching import BatchPlan, split_batch
    from dnabert_rm.model.build import build_model, transformers_config
    from dnabert_rm.model.mlm import MaskedLM
    from dnabert_rm.train import build_engine, deepspeed_settings
    from dnabert_rm.train.step import StepStart, queue_step

    torch.manual_seed(0)
    train = {"output": "unused", "ds_config": ds_config, "precision": precision}
    config = resolve(load_preset("tiny"), {"data": {"path": ["x"]}, "optim": {"clip": 0.0}, "train": train})
    split = split_batch(BatchPlan.constant(NUM_WINDOWS), micro_batch, ranks.world_size)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_positions": TOKENS}
    network = build_model(transformers_config(architecture="bert", vocab_size=VOCAB, dropout=0.0, **sizes), seed=0)
    settings = deepspeed_settings.ds_settings(config, split, precision, ranks.local_world_size)
    engine = build_engine.make_engine(MaskedLM(network, K), config, settings, ranks)
    num_batches = split.accumulation(NUM_WINDOWS)
    engine.set_accumulation(num_batches)
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, VOCAB, (NUM_WINDOWS, TOKENS)))
    batches = []
    for number in range(num_batches):
        first = (number * ranks.world_size + ranks.rank) * micro_batch
        windows = ids[first : first + micro_batch]
        positions = torch.arange(0, micro_batch * TOKENS, 4)
        batches.append(
            {
                "input_ids": windows,
                "positions": positions,
                "targets": windows.flatten()[positions],
                "span": torch.full((micro_batch,), 6),
                "samples": torch.arange(first, first + micro_batch),
                "num_replaced": torch.tensor(0),
            }
        )
    return queue_step(engine, batches, 0, 0, lambda: (False, False), StepStart(ranks.device)).result().grad_norm


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("ds_config", ["zero1", "zero2", "zero3"])
def test_many_micro_batches_have_the_gradient_of_one(ds_config: str, num_ranks: int) -> None:
    split, whole = (
        on_ranks(num_ranks, gradient_norm, ds_config, "bf16", micro_batch)[0]
        for micro_batch in (1, NUM_WINDOWS // num_ranks)
    )
    exact = on_ranks(1, gradient_norm, ds_config, "fp32", NUM_WINDOWS)[0]
    print(f"{ds_config}, ranks: {num_ranks}: {split / exact - 1:+.2%}, one micro-batch {whole / exact - 1:+.2%}")
    assert whole == pytest.approx(exact, rel=0.01)
    assert split == pytest.approx(exact, rel=0.01)
