"""Loss on held-out windows at fixed spans: the same windows and masks each time, in every run on the data."""

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
from dnabert_rm.train.engine import Engine
from dnabert_rm.utils.errors import UserError


class Validation:
    """The held-out windows of one rank: n, n + ranks, n + 2 ranks … of the run's."""

    def __init__(self, dataset: WindowDataset, config: RunConfig, ranks: Ranks, micro_batch: int) -> None:
        """Args: `micro_batch` windows of a forward pass. No shard is read before the first validation."""
        self.ranks, self._dataset = ranks, dataset
        self._collators = make_validation_collators(config, dataset)
        self._turns = turns(min(config.validation.windows, dataset.num_windows), ranks, micro_batch)
        self._windows: list[NDArray] | None = None

    @classmethod
    def of(cls, config: RunConfig, ranks: Ranks, micro_batch: int) -> Validation | None:
        """The validation that a configuration asks for; None where it asks for none, or the data hold nothing out."""
        dataset = make_validation_dataset(config)
        return None if dataset is None else cls(dataset, config, ranks, micro_batch)

    def run(self, engine: Engine, beat: Callable[[str], None]) -> dict[str, dict[str, float | None]]:
        """Loss, masked and base accuracy by curve ("span_6" …), without dropout; on all ranks together.

        Each is a mean over all masked tokens of all ranks, so the number of ranks changes it by rounding alone.
        """
        sums = torch.zeros(len(self._collators), 4, dtype=torch.float64, device=self.ranks.device)
        engine.deepspeed.eval()
        with torch.no_grad():
            for row, collate in enumerate(self._collators.values()):
                for (samples, counts), ids in zip(self._turns, self._read(), strict=True):
                    beat("validation")
                    sums[row] += self._ask(engine, collate((samples, ids)), counts)
        engine.deepspeed.train()
        totals = sum_over_ranks(sums, self.ranks).tolist()
        return {name: _means(values, engine.k) for name, values in zip(self._collators, totals, strict=True)}

    def _read(self) -> list[NDArray]:
        """The windows of each turn; they are read once, and kept."""
        if self._windows is None:
            try:
                self._windows = [self._dataset.windows(samples, 0).ids for samples, _ in self._turns]
            except UserError as error:
                error.on_one_rank = True  # the others may have read theirs
                raise
        return self._windows

    def _ask(self, engine: Engine, batch: dict[str, Any], counts: bool) -> torch.Tensor:
        """Sums over a micro-batch: loss, right tokens, right bases, masked tokens."""
        if not counts:
            batch["targets"].fill_(IGNORE)
        device = self.ranks.device
        found = engine(*(batch[name].to(device) for name in ("input_ids", "positions", "targets")))
        return torch.stack([value.double() for value in (*found, (batch["targets"] != IGNORE).sum().to(device))])


def turns(num_windows: int, ranks: Ranks, micro_batch: int) -> list[tuple[NDArray[np.int64], bool]]:
    """Sample indices of each forward pass of a rank, and whether they count.

    All ranks have as many: under ZeRO-3 each pass gathers weights together. One that has no windows left repeats the
    first.
    """
    mine = np.arange(ranks.rank, num_windows, ranks.world_size)
    most = -(-num_windows // ranks.world_size)
    parts = [mine[start : start + micro_batch] for start in range(0, most, micro_batch)]
    return [(part, True) if len(part) else (np.zeros(1, dtype=np.int64), False) for part in parts]


def _means(sums: list[float], k: int | None) -> dict[str, float | None]:
    loss_sum, num_right, num_right_bases, num_masked = sums
    divisor = max(1.0, num_masked)
    bases = num_right_bases / divisor / k if k else None
    return {"loss": loss_sum / divisor, "masked_accuracy": num_right / divisor, "base_accuracy": bases}


def make_validation_collators(config: RunConfig, dataset: WindowDataset) -> dict[str, RandomMaskCollator]:
    """The collate steps of the validation, by the names of their curves: "span_6" …, or "token".

    Spans and rates are the same for all runs on the data, whatever they train with.
    """
    k, vocab_size = dataset.tokenizer.k, dataset.tokenizer.vocab_size
    spans = config.validation.spans
    if k is None or (not config.data.overlap and not spans):
        schedules = {"token": make_schedule("token", k=k or 1, total_steps=1)}
    else:
        spans = spans or tuple(range(k, k + 4 * SPAN_STEP + 1, SPAN_STEP))
        schedules = {f"span_{span}": make_schedule("fixed", k=k, total_steps=1, fixed_span=span) for span in spans}
    return {
        name: RandomMaskCollator(schedule, np.zeros_like, vocab_size, VALIDATION_SEED)
        for name, schedule in schedules.items()
    }
