"""Counts of a step's batches, sums over the global batch, and the result of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dnabert_rm.masking.collator import IGNORE


class BatchCounts(NamedTuple):
    """Numbers of tokens, masked tokens and windows in one or more batches, known before the forward pass."""

    num_masked: float
    weight: float
    """Sum of the weights of the masked tokens in the training loss: `num_masked`, unless data.repeat_weight is set."""
    num_tokens: float
    span_sum: float
    num_windows: float
    num_replaced: float
    """Number of replacement samples for windows in bad shards."""


def count_batches(batches: list[dict[str, torch.Tensor]]) -> BatchCounts:
    """Count the tokens, masked tokens and windows in this rank's batches of one step."""
    # In numpy, so that these values never mix with those of the device.
    arrays = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]
    num_masked = sum(np.count_nonzero(batch["targets"] != IGNORE) for batch in arrays)
    weights = [
        batch["base_weights"].mean(axis=1, dtype=np.float64).sum() for batch in arrays if "base_weights" in batch
    ]
    return BatchCounts(
        num_masked=float(num_masked),
        weight=float(sum(weights) if weights else num_masked),
        num_tokens=float(sum(batch["input_ids"].size for batch in arrays)),
        span_sum=float(sum(batch["span"].sum() for batch in arrays)),
        num_windows=float(sum(len(batch["samples"]) for batch in arrays)),
        num_replaced=float(sum(batch["num_replaced"] for batch in arrays)),
    )


@dataclass(frozen=True)
class StepSums:
    """Loss, correct predictions, stop requests and counts of one step, summed over all batches of all ranks."""

    loss: float
    token_loss: float
    num_right: float
    """Number of masked tokens that were predicted correctly."""
    num_right_bases: float
    num_stopping: float
    """Number of ranks that were asked to stop."""
    num_written: float
    """Number of ranks that have written their files of a checkpoint."""
    counts: BatchCounts

    def to_result(
        self,
        step: int,
        k: int | None,
        grad_norm: float,
        *,
        seconds: float,
        data_seconds: float,
        skipped_steps: int = 0,
        loss_scale: float | None = None,
    ) -> StepResult:
        """Return the result of the step: weighted mean losses of the masked tokens, and unweighted accuracies.

        `k` is the k-mer length, or None if tokens are not k-mers. `seconds` is the duration of the step, of which
        `data_seconds` were spent waiting for data. `skipped_steps` is the number of updates skipped so far.
        `loss_scale` is that of fp16.
        """
        counts = self.counts
        divisor = max(1.0, counts.num_masked)
        weight = counts.weight or 1.0
        return StepResult(
            step=step,
            loss=self.loss / weight,
            token_loss=self.token_loss / weight,
            masked_accuracy=self.num_right / divisor,
            base_accuracy=self.num_right_bases / divisor / k if k else None,
            num_masked=int(counts.num_masked),
            num_tokens=int(counts.num_tokens),
            mean_span=counts.span_sum / counts.num_windows,
            num_replaced=int(counts.num_replaced),
            grad_norm=grad_norm,
            skipped_steps=skipped_steps,
            loss_scale=loss_scale,
            seconds=seconds,
            data_wait=min(1.0, data_seconds / seconds),
            stop_wanted=self.num_stopping > 0,
            num_written=int(self.num_written),
        )


@dataclass(frozen=True)
class StepResult:
    """Loss, accuracies, counts and times of one optimizer step on a global batch."""

    step: int
    loss: float
    """Training loss: the mean over the masked tokens of the global batch, weighted by data.repeat_weight, in nats."""
    token_loss: float
    """Cross-entropy over tokens, averaged in the same way, in nats. It equals `loss` if model.loss is "token"."""
    masked_accuracy: float
    base_accuracy: float | None
    """Share of correct bases in masked k-mers; None for other tokenizers."""
    num_masked: int
    num_tokens: int
    """Number of tokens in all windows, including [CLS] and [SEP]."""
    mean_span: float
    num_replaced: int
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped_steps: int
    """Number of updates skipped so far because a gradient was inf or NaN, in this run and before a resume."""
    loss_scale: float | None
    """Loss scale for fp16, or None for other precisions."""
    seconds: float
    data_wait: float
    """Share of `seconds` that the host waited for the loader. A GPU may have worked on the step before meanwhile."""
    stop_wanted: bool
    """Whether any rank was asked to stop."""
    num_written: int
    """Number of ranks that have written their files of a checkpoint."""
