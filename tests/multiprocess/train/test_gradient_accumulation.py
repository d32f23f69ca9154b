"""The gradient of a step in half precision does not depend on the number of micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, on_ranks

K = 3
VOCAB = 4**K + 5
TOKENS = 16
NUM_WINDOWS = 512
"""Windows in the global batch. In bf16, a sum of 512 gradients is wrong by several per cent."""
BETA1 = 0.9


def build(ranks: Any, ds_config: str, precision: str, micro_batch: int) -> tuple[Any, list[dict[str, Any]]]:
    """Return an engine for a small model, and this rank's micro-batches of a step."""
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.data.batching import BatchPlan, split_batch
    from dnabert_rm.model.build import build_model, transformers_config
    from dnabert_rm.model.mlm import MaskedLM
    from dnabert_rm.train import build_engine, deepspeed_settings

    train = {"output": "unused", "ds_config": ds_config, "precision": precision}
    config = resolve(load_preset("tiny"), {"data": {"path": ["x"]}, "optim": {"clip": 0.0}, "train": train})
    split = split_batch(BatchPlan.constant(NUM_WINDOWS), micro_batch, ranks.world_size)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_positions": TOKENS}
    network = build_model(transformers_config(architecture="bert", vocab_size=VOCAB, dropout=0.0, **sizes), seed=0)
    settings = deepspeed_settings.ds_settings(config, split, precision, ranks.local_world_size)
    engine = build_engine.make_engine(MaskedLM(network, K), config, settings, ranks)
    engine.set_accumulation(split.accumulation(NUM_WINDOWS))
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, VOCAB, (NUM_WINDOWS, TOKENS)))
    is_masked = torch.arange(TOKENS) % (2 + torch.arange(NUM_WINDOWS) % 7)[:, None] == 0  # 2 to 8 tokens a window
    batches = []
    for first in range(ranks.rank * micro_batch, NUM_WINDOWS, ranks.world_size * micro_batch):
        windows = ids[first : first + micro_batch]
        samples = torch.arange(first, first + micro_batch)
        positions = is_masked[samples].flatten().nonzero()[:, 0]
        batch = {"input_ids": windows, "positions": positions, "targets": windows.flatten()[positions]}
        batches.append({**batch, "samples": samples, "span": samples * 0 + 6, "num_replaced": torch.tensor(0)})
    return engine, batches


def run_step(engine: Any, batches: list[dict[str, Any]], step: int) -> Any:
    from dnabert_rm.train.step import StepStart, queue_step

    return queue_step(engine, batches, step, 0, lambda: (False, False), StepStart(engine.ranks.device)).result()


def first_gradient(ranks: Any, ds_config: str, precision: str, micro_batch: int) -> Any:
    """Return this rank's partition of the first step's gradient, with `micro_batch` windows in each micro-batch.

    After the first step, AdamW's first moment is 1 - beta1 times the gradient.
    """
    engine, batches = build(ranks, ds_config, precision, micro_batch)
    run_step(engine, batches, 0)
    moments = [state["exp_avg"].flatten() for state in engine.deepspeed.optimizer.optimizer.state.values()]
    return torch.cat(moments).numpy() / (1 - BETA1)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("ds_config", ["zero1", "zero2", "zero3"])
def test_many_micro_batches_have_the_gradient_of_one(ds_config: str, num_ranks: int) -> None:
    whole_batch = NUM_WINDOWS // num_ranks
    exact, whole, split = (
        np.concatenate(on_ranks(num_ranks, first_gradient, ds_config, precision, micro_batch))
        for precision, micro_batch in (("fp32", whole_batch), ("bf16", whole_batch), ("bf16", 1))
    )
    of_split, of_whole = (np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (split, whole))
    print(f"{ds_config}, ranks: {num_ranks}: error {of_split:.2%}, with one micro-batch {of_whole:.2%}")
    assert max(of_split, of_whole) < 0.02


def skipped_updates(ranks: Any, ds_config: str) -> list[int]:
    """Return the number of skipped updates after each of four steps, of which the second has an infinite gradient."""
    engine, batches = build(ranks, ds_config, "bf16", NUM_WINDOWS // 4)
    step = 0
    weight = next(p for name, p in engine.module.named_parameters() if name.endswith("intermediate.dense.weight"))
    weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")) if step == 1 else gradient)
    skipped = []
    for step in range(4):
        skipped.append(run_step(engine, batches, step).skipped_steps)
    return skipped


@pytest.mark.parametrize("offload", [False, True], ids=["device", "offload"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_infinite_gradient_skips_only_its_own_step(tmp_path: Path, stage: int, offload: bool) -> None:
    settings = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    if offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    # The first run with offload compiles DeepSpeed's optimizer.
    assert on_ranks(1, skipped_updates, str(path), timeout=580) == [[0, 1, 1, 1]]
