"""The training loop: next batch, forward, backward, check, step, log, maybe save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dnabert_rm import draws
from dnabert_rm.errors import UserError
from dnabert_rm.masking.collator import IGNORE
from dnabert_rm.train.distributed import sum_over_ranks
from dnabert_rm.train.engine import Engine

Batch = dict[str, torch.Tensor]


class NonFiniteLossError(UserError):
    """The loss of a step is NaN or infinite; nothing was updated."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: sums over the global batch, and where the time went."""

    step: int
    loss: float
    masked_accuracy: float
    base_accuracy: float | None
    num_masked: int
    num_tokens: int
    mean_span: float
    num_replaced: int
    grad_norm: float
    seconds: float
    data_wait: float
    stop_wanted: bool


def train(
    engine: Engine,
    loader: Iterable[Batch],
    *,
    first_step: int,
    last_step: int,
    accumulation: Callable[[int], int],
    seed: int,
    learning_rate: Callable[[int], float],
    after_step: Callable[[StepResult], bool | None],
    stop_wanted: Callable[[], bool],
    beat: Callable[[str], None],
) -> StepResult | None:
    """Run the steps `first_step` … `last_step - 1`; returns the last step's result.

    `loader` gives this rank's micro-batches in order, `accumulation(step)` of them a step. `after_step` logs and
    saves; a true answer stops the run after that step. `stop_wanted` is asked once a step; a result tells the answer
    of all ranks together. `beat` is told what is waited for next.
    """
    batches, result = iter(loader), None
    for step in range(first_step, last_step):
        start = time.perf_counter()
        beat("loader" if result else "first batch")
        micro_batches = [next(batches) for _ in range(accumulation(step))]
        waited = time.perf_counter() - start
        engine.set_learning_rate(learning_rate(step))
        engine.set_accumulation(len(micro_batches))
        beat("step" if result else "first step")
        totals = run_step(engine, micro_batches, step, seed, stop_wanted)
        result = _result(engine, totals, step, time.perf_counter() - start, waited)
        if after_step(result):
            break
    return result


def run_step(
    engine: Engine, micro_batches: list[Batch], step: int, seed: int, stop_wanted: Callable[[], bool]
) -> list[float]:
    """Forward, backward and update on one global batch.

    Returns sums over the global batch: loss, right predictions, right bases, ranks that were asked to stop, masked
    tokens, tokens, spans, windows, stand-ins. The divisor of the loss is known before the first backward pass, so the
    gradient is that of the global mean.
    """
    device = engine.ranks.device
    counts = sum_over_ranks(_counts(micro_batches), engine.ranks)
    num_masked = counts[0].clamp(min=1)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for number, batch in enumerate(micro_batches):
        seed_dropout(seed, int(batch["samples"][0]))
        inputs = (batch[name].to(device, non_blocking=True) for name in ("input_ids", "positions", "targets"))
        loss_sum, num_right, num_right_bases = engine(*inputs)
        sums += torch.stack([loss_sum.detach().double(), num_right.double(), num_right_bases.double()])
        is_last = number == len(micro_batches) - 1
        engine.backward(loss_sum, num_masked, is_last)
        if is_last:
            # Asked as late as the step's last sum allows, so that a stop waits for no further step.
            totals = sum_over_ranks(torch.cat([sums, sums.new_tensor([stop_wanted()])]), engine.ranks)
            _check_finite(float(totals[0]), micro_batches, step, int(counts[3]))
        engine.step()
    return [*totals.tolist(), *counts.tolist()]


def _counts(micro_batches: list[Batch]) -> list[float]:
    """Masked tokens, tokens, sum of spans, windows and stand-ins for bad shards of this rank's part."""
    return [
        float(sum(int((batch["targets"] != IGNORE).sum()) for batch in micro_batches)),
        float(sum(batch["input_ids"].numel() for batch in micro_batches)),
        float(sum(int(batch["span"].sum()) for batch in micro_batches)),
        float(sum(len(batch["samples"]) for batch in micro_batches)),
        float(sum(int(batch["num_replaced"]) for batch in micro_batches)),
    ]


def _check_finite(loss_sum: float, micro_batches: list[Batch], step: int, num_windows: int) -> None:
    """The same error on every rank; rank 0, which reports it, holds the first sample of the global batch."""
    if not math.isfinite(loss_sum):
        first = min(int(batch["samples"].min()) for batch in micro_batches)
        raise NonFiniteLossError(
            f"step {step}: the loss is {loss_sum} over the samples {first} to {first + num_windows - 1}; nothing was "
            f"updated. Look at them with `dnabert-rm show-batch --step {step}`, and lower --lr or raise "
            "--optim.warmup_steps; the last checkpoint is intact"
        )


def seed_dropout(seed: int, sample: int) -> None:
    """Seed torch's chance by the micro-batch's first sample, so that dropout does not depend on what ran before."""
    torch.manual_seed(int(draws.fold(draws.key(seed, "dropout"), sample) >> np.uint64(1)))


def _result(engine: Engine, totals: list[float], step: int, seconds: float, waited: float) -> StepResult:
    loss_sum, num_right, num_right_bases, num_stop, *counts = totals
    num_masked, num_tokens, span_sum, num_windows, num_replaced = counts
    divisor = max(1.0, num_masked)
    return StepResult(
        step=step,
        loss=loss_sum / divisor,
        masked_accuracy=num_right / divisor,
        base_accuracy=num_right_bases / divisor / engine.k if engine.k else None,
        num_masked=int(num_masked),
        num_tokens=int(num_tokens),
        mean_span=span_sum / num_windows,
        num_replaced=int(num_replaced),
        grad_norm=engine.grad_norm,
        seconds=seconds,
        data_wait=waited / seconds,
        stop_wanted=num_stop > 0,
    )
