"""Validation on held-out windows: loss and accuracy at fixed mask spans, and bits per base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import VALIDATION_SEED, WindowDataset, make_validation_dataset
from dnabert_rm.distributed.collectives import sum_over_ranks
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import SPAN_STEP, make_schedule
from dnabert_rm.train.bits_per_base import make_bits_per_base
from dnabert_rm.train.engine import Engine
from dnabert_rm.utils.errors import UserError


class Validation:
    """Validation on one rank. Rank r processes the windows r, r + world_size, r + 2 * world_size, …"""

    def __init__(
        self, dataset: WindowDataset, training: WindowDataset, config: RunConfig, ranks: Ranks, micro_batch: int
    ) -> None:
        """Prepare the validation without reading a shard.

        Args:
            dataset: Held-out windows.
            training: Training windows, from which the reference lines of bits per base are computed.
            config: The run's configuration.
            ranks: This rank.
            micro_batch: Number of windows per forward pass.
        """
        self.ranks = ranks
        self._bits = make_bits_per_base(dataset, training, config, ranks, micro_batch)
        self._dataset = dataset
        self._collators = make_validation_collators(config, dataset)
        self._batches = validation_batches(min(config.validation.windows, dataset.num_windows), ranks, micro_batch)
        self._windows: list[NDArray] | None = None

    @classmethod
    def from_config(
        cls, config: RunConfig, training: WindowDataset, ranks: Ranks, micro_batch: int
    ) -> Validation | None:
        """Return the validation of a run, or None if validation is off or there are no held-out windows."""
        dataset = make_validation_dataset(config)
        return None if dataset is None else cls(dataset, training, config, ranks, micro_batch)

    def run(self, engine: Engine, reset_watchdog: Callable[[str], None]) -> dict[str, Any]:
        """Return the results of a validation, computed without dropout: one entry per curve, and bits per base.

        The entry of a curve, such as "span_6" for mask spans of 6 tokens, holds the loss over tokens, the masked
        accuracy and the base accuracy. Each value is a mean over the masked tokens of all ranks. `BitsPerBase.run`
        describes the other entries. Every rank must call this. With another number of ranks the values differ only by
        rounding.
        """
        sums = torch.zeros(len(self._collators), 4, dtype=torch.float64, device=self.ranks.device)
        engine.set_base_share(0.0)
        with engine.evaluating():
            for row, collate in enumerate(self._collators.values()):
                for (samples, is_counted), ids in zip(self._batches, self._read_windows(), strict=True):
                    reset_watchdog("validation")
                    sums[row] += self._forward(engine, collate((samples, ids)), is_counted)
            bits = self._bits.run(engine, reset_watchdog) if self._bits else {}
        totals = sum_over_ranks(sums, self.ranks).tolist()
        curves = {name: _means(values, engine.k) for name, values in zip(self._collators, totals, strict=True)}
        return curves | bits

    def _read_windows(self) -> list[NDArray]:
        """Return the token ids of each batch. The first call reads shards, later calls use the ids in memory."""
        if self._windows is None:
            try:
                self._windows = [self._dataset.windows(samples, 0).ids for samples, _ in self._batches]
            except UserError as error:
                error.on_one_rank = True  # other ranks may have read their windows
                raise
        return self._windows

    def _forward(self, engine: Engine, batch: dict[str, Any], is_counted: bool) -> torch.Tensor:
        """Run one batch and return four sums, (4,) float64: loss, correct tokens, correct bases, masked tokens.

        If `is_counted` is false, all labels are ignored, and all sums are 0.
        """
        if not is_counted:
            batch["targets"].fill_(IGNORE)
        device = self.ranks.device
        _, *sums = engine(*(batch[name].to(device) for name in ("input_ids", "positions", "targets")))
        num_masked = (batch["targets"] != IGNORE).sum().to(device)
        return torch.stack([value.double() for value in (*sums, num_masked)])


def validation_batches(num_windows: int, ranks: Ranks, micro_batch: int) -> list[tuple[NDArray[np.int64], bool]]:
    """Return the sample indices of each forward pass on this rank, and whether the result of the pass is used.

    All ranks have the same number of batches, because under ZeRO-3 each forward pass gathers weights from all ranks.
    A rank with no windows left runs window 0 instead, and the result is not used.
    """
    samples = np.arange(ranks.rank, num_windows, ranks.world_size)
    most_samples = -(-num_windows // ranks.world_size)
    batches = [samples[start : start + micro_batch] for start in range(0, most_samples, micro_batch)]
    return [(batch, True) if len(batch) else (np.zeros(1, dtype=np.int64), False) for batch in batches]


def _means(sums: list[float], k: int | None) -> dict[str, float | None]:
    """Return loss and accuracies as means over masked tokens. Base accuracy is None if tokens are not k-mers."""
    loss_sum, num_right, num_right_bases, num_masked = sums
    divisor = max(1.0, num_masked)
    return {
        "loss": loss_sum / divisor,
        "masked_accuracy": num_right / divisor,
        "base_accuracy": num_right_bases / divisor / k if k else None,
    }


def make_validation_collators(config: RunConfig, dataset: WindowDataset) -> dict[str, RandomMaskCollator]:
    """Return one collator for each validation curve, keyed by the curve's name.

    For the curve "span_6", the collator masks spans of 6 tokens. For "token", it masks single tokens. Span lengths and
    masking probabilities do not depend on the masking used in training.
    """
    k = dataset.tokenizer.k
    spans = config.validation.spans
    if k is None or (not config.data.overlap and not spans):
        schedules = {"token": make_schedule("token", k=k or 1, total_steps=1)}
    else:
        spans = spans or tuple(range(k, k + 4 * SPAN_STEP + 1, SPAN_STEP))
        schedules = {f"span_{span}": make_schedule("fixed", k=k, total_steps=1, fixed_span=span) for span in spans}
    return {
        name: RandomMaskCollator(schedule, np.zeros_like, dataset.tokenizer.vocab_size, VALIDATION_SEED)
        for name, schedule in schedules.items()
    }
