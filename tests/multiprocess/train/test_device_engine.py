"""The engine that never waits: its operations in a step, its equality with DeepSpeed's own way, its skipped updates."""

from __future__ import annotations

import collections
import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from support import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

K = 4
VOCAB = 4**K + 5
TOKENS = 32
WINDOWS = 2
"""Windows per micro-batch."""


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches. Views are left out, because they launch no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view or "lift_fresh" in function.name():  # dispatched for a tensor made on the host
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def build(
    ranks, name: str, precision: str, layers: int, *, own: bool = True, architecture: str = "bert", clip: float = 1.0
) -> Any:
    """Return an engine for a small model; with `own` false, the one that leaves everything to DeepSpeed."""
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.data.batching import BatchPlan, split_batch
    from dnabert_rm.model.build import build_model, transformers_config
    from dnabert_rm.model.mlm import MaskedLM
    from dnabert_rm.train import build_engine, deepspeed_settings

    if not own:
        deepspeed_settings.updates_on_device = build_engine.updates_on_device = lambda settings, precision: False
    train = {"output": "unused", "ds_config": name, "precision": precision}
    config = resolve(load_preset("tiny"), {"data": {"path": ["x"]}, "optim": {"clip": clip}, "train": train})
    split = split_batch(BatchPlan.constant(WINDOWS * ranks.world_size), WINDOWS, ranks.world_size)
    sizes = {"hidden_size": 32, "num_layers": layers, "num_heads": 2, "intermediate_size": 64, "max_positions": TOKENS}
    network = build_model(
        transformers_config(architecture=architecture, vocab_size=VOCAB, dropout=0.0, **sizes), config.train.seed
    )
    settings = deepspeed_settings.ds_settings(config, split, precision, ranks.local_world_size)
    engine = build_engine.make_engine(MaskedLM(network, K), config, settings, ranks)
    engine.set_learning_rate(1e-2)
    return engine


def batch_of(step: int, number: int) -> dict[str, torch.Tensor]:
    """Return a micro-batch that depends on the step and on its number in the global batch."""
    rng = np.random.default_rng([step, number])
    ids = torch.from_numpy(rng.integers(5, VOCAB, (WINDOWS, TOKENS)))
    positions = torch.from_numpy(np.sort(rng.permutation(WINDOWS * TOKENS)[: 6 + number]))
    return {
        "input_ids": ids,
        "positions": positions,
        "targets": ids.flatten()[positions],
        "span": torch.tensor([6, 8]),
        "samples": torch.arange(WINDOWS) + number * WINDOWS,
        "num_replaced": torch.tensor(0),
    }


def queue(engine: Any, step: int, num_batches: int = 1, counted: Any = None) -> Any:
    """Queue a step of `num_batches` micro-batches per rank, inside the context `counted`."""
    from dnabert_rm.train.step import StepStart, queue_step

    ranks = engine.ranks
    engine.set_accumulation(num_batches)
    batches = [batch_of(step, ranks.rank + number * ranks.world_size) for number in range(num_batches)]
    with counted or contextlib.nullcontext():
        return queue_step(engine, batches, step, 0, lambda: (False, False), StepStart(ranks.device))


def steady_step(ranks, name: str, precision: str, architecture: str) -> dict[str, int]:
    """Return the operations of a step after the first three, for 12 layers."""
    engine = build(ranks, name, precision, 12, architecture=architecture)
    for step in range(3):
        queue(engine, step).result()
    operations = Operations()
    queue(engine, 3, counted=operations)
    return dict(operations.counts)


@pytest.mark.parametrize(
    ("name", "precision", "architecture", "most"),
    [("zero1", "bf16", "bert", 600), ("zero0", "fp32", "bert", 800), ("zero1", "bf16", "modernbert", 1100)],
)
def test_a_steady_step_reads_nothing_back(name: str, precision: str, architecture: str, most: int) -> None:
    counts = on_ranks(1, steady_step, name, precision, architecture)[0]
    print(f"{name} in {precision}, {architecture}: {sum(counts.values())} operations")
    assert not {operation for operation in counts if "_local_scalar_dense" in operation or "lift_fresh" in operation}
    assert counts["aten::_fused_adamw_"] == 2
    assert sum(counts.values()) <= most


def test_deepspeeds_own_way_does_read_back() -> None:
    """So that the test above can fail: it would see these reads."""
    counts = on_ranks(1, steady_step, "zero2", "bf16", "bert")[0]
    assert counts["aten::_local_scalar_dense"] > 0 and counts["aten::lift_fresh"] > 0


def curve(ranks, name: str, precision: str, own: bool, num_batches: int) -> list[tuple[float, float]]:
    """Return loss and gradient norm of ten steps. Gradients are clipped in fp32 only, to a tenth of their norm."""
    engine = build(ranks, name, precision, 2, own=own, clip=0.2 if precision == "fp32" else 0.0)
    results = [queue(engine, step, num_batches).result() for step in range(10)]
    return [(result.loss, result.grad_norm) for result in results]


@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(("name", "precision"), [("zero0", "fp32"), ("zero1", "fp32"), ("zero1", "bf16")])
def test_losses_are_those_of_deepspeeds_own_way(name: str, precision: str, num_ranks: int, num_batches: int) -> None:
    own, deepspeeds = (on_ranks(num_ranks, curve, name, precision, own, num_batches) for own in (True, False))
    assert own[-1] == own[0]  # the same numbers on every rank
    if name == "zero0":  # where DeepSpeed computes no norm
        own, deepspeeds = ([[loss for loss, _ in run[0]]] for run in (own, deepspeeds))
    np.testing.assert_allclose(own[0], deepspeeds[0], rtol=2e-5, atol=0)


def state_of(engine: Any) -> list[torch.Tensor]:
    """Return copies of the weights and of AdamW's state."""
    optimizer = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    states = [value for state in optimizer.state.values() for value in state.values()]
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [tensor.detach().clone() for tensor in (*engine.module.parameters(), *masters, *states)]


def non_finite_step(ranks, name: str, precision: str, value: float) -> tuple[str, bool, int]:
    """Run steps 0 to 6; rank 0's loss of step 5 is `value`. Return the error, and whether the state is that of step 4.

    The third value is the number of tensors compared.
    """
    from dnabert_rm.train.step import NonFiniteLossError

    engine = build(ranks, name, precision, 2)
    for step in range(5):
        queue(engine, step).result()
    expected = state_of(engine)

    def spoil(module: Any, inputs: Any, outputs: Any) -> Any:
        return (outputs[0] * value, *outputs[1:]) if ranks.rank == 0 else outputs

    hook = engine.module.register_forward_hook(spoil)
    bad = queue(engine, 5)
    hook.remove()
    queue(engine, 6)  # before anything is known of step 5
    found = state_of(engine)
    same = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    with pytest.raises(NonFiniteLossError) as raised:
        bad.result()
    return str(raised.value), same, len(found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(("name", "precision"), [("zero0", "fp32"), ("zero1", "bf16"), ("zero2", "bf16")])
def test_a_bad_loss_is_noticed_a_step_later_and_changes_nothing(
    name: str, precision: str, num_ranks: int, value: float
) -> None:
    for message, same, num_compared in on_ranks(num_ranks, non_finite_step, name, precision, value):
        assert "step 5: the loss is" in message and "the weights were not updated" in message
        assert same and num_compared > 10
