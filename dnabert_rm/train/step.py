"""One optimizer step: `queue_step` queues its work on the device, and `QueuedStep.result` reads what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist

from dnabert_rm.model.mlm import MODEL_INPUTS
from dnabert_rm.train.async_transfer import AsyncRead, DeviceTimestamp
from dnabert_rm.train.engine import Engine
from dnabert_rm.train.step_result import BatchCounts, StepResult, StepSums, count_batches
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import UserError

Batch = dict[str, torch.Tensor]
"""Tensors of one micro-batch: the output of `RandomMaskCollator`, and `num_replaced`."""


class StepStart:
    """The start of a step: when the run began to wait for its batches, and how long it waited."""

    def __init__(self, device: torch.device) -> None:
        """Record the start."""
        self.timestamp = DeviceTimestamp(device)
        self.data_seconds = 0.0
        self._seconds = time.perf_counter()

    def batches_ready(self) -> None:
        """Record that the batches are there."""
        self.data_seconds = time.perf_counter() - self._seconds


def queue_step(
    engine: Engine,
    batches: list[Batch],
    step: int,
    seed: int,
    read_flags: Callable[[], Sequence[bool]],
    start: StepStart,
) -> QueuedStep:
    """Queue one optimizer step on this rank's batches, and return without waiting for the device.

    The loss is a mean over the masked tokens of the global batch, not a mean of means over ranks or batches:

        loss = sum of weight x loss over masked tokens / sum of weights of masked tokens in the GLOBAL batch

    All weights are 1 unless data.repeat_weight is set. The sum of the weights is computed over all ranks before the
    first backward pass, so the gradient does not depend on how the global batch is split. If this sum is 0, the
    loss is 0.

    `read_flags` is called at the end. It returns whether this rank was asked to stop, and whether it has written its
    files of a checkpoint.
    """
    device = engine.ranks.device
    counts = engine.counts_to_device.copy(list(count_batches(batches)))
    if engine.ranks.world_size > 1:
        dist.all_reduce(counts)
    weight = counts[BatchCounts._fields.index("weight")]
    divisor = weight + (weight == 0)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for number, batch in enumerate(batches):
        seed_dropout(seed, int(batch["samples"].numpy()[0]))
        inputs = (batch[name].to(device, non_blocking=True) for name in MODEL_INPUTS if name in batch)
        loss_sum, *counted = engine(*inputs)
        sums += torch.stack([value.double() for value in (loss_sum.detach(), *counted)])
        engine.backward(loss_sum, divisor, is_last=number == len(batches) - 1)
    # Read stop requests late, so that a stop does not wait for another step.
    flags = engine.flags_to_device.copy([float(flag) for flag in read_flags()])
    totals = engine.update(torch.cat([sums, flags]))
    first_sample = min(int(batch["samples"].numpy().min()) for batch in batches)
    return QueuedStep(step, engine, first_sample, start, torch.cat([totals, counts]))


class QueuedStep:
    """A step that the host has queued, and that the device may not have finished."""

    def __init__(self, step: int, engine: Engine, first_sample: int, start: StepStart, values: torch.Tensor) -> None:
        """Queue the copy of `values` to the host: those of `Engine.update`, and the counts of the global batch."""
        self.step = step
        self._loss_scale = engine.loss_scale
        self._engine = engine
        self._first_sample = first_sample
        self._start = start
        self._read = AsyncRead(values)

    def result(self) -> StepResult:
        """Wait for the step, and return its result.

        Raises `NonFiniteLossError` on every rank if the loss is inf or NaN. The weights are those from before the step,
        even if a later step has been queued.
        """
        values = self._read.values()
        *summed, norm, num_skipped = values[: -len(BatchCounts._fields)]
        sums = StepSums(*summed, BatchCounts(*values[-len(BatchCounts._fields) :]))  # type: ignore[call-arg, arg-type]
        check_finite(sums.loss, self.step, self._first_sample, int(sums.counts.num_windows))
        return sums.to_result(
            self.step,
            self._engine.k,
            norm,
            skipped_steps=self._engine.record_skipped(int(num_skipped)),
            loss_scale=self._loss_scale,
            seconds=self._read.end.seconds_since(self._start.timestamp),
            data_seconds=self._start.data_seconds,
        )


def seed_dropout(seed: int, sample: int) -> None:
    """Seed torch for the dropout of one batch, so that dropout does not depend on earlier batches.

    `sample` is the index of the first sample in the batch.
    """
    torch.manual_seed(int(random.fold(random.key(seed, "dropout"), sample) >> np.uint64(1)))


class NonFiniteLossError(UserError):
    """The loss of a step is inf or NaN; the weights were not updated."""


def check_finite(loss_sum: float, step: int, first_sample: int, num_windows: int) -> None:
    """Raise `NonFiniteLossError` if the summed loss of the global batch is inf or NaN.

    The sum is the same on every rank, so all ranks raise the error, but only rank 0 prints the message. The message
    names the first sample of the global batch, which is always in one of rank 0's batches.
    """
    if not math.isfinite(loss_sum):
        raise NonFiniteLossError(
            f"step {step}: the loss is {loss_sum} over the samples {first_sample} to {first_sample + num_windows - 1}; "
            f"the weights were not updated. Inspect the samples with `dnabert-rm show-batch --step {step}`, and lower "
            "--lr or raise --optim.warmup_steps (on resume with --allow-changes). Saved checkpoints are unchanged"
        )
