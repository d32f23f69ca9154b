"""Bits per base during a run: how well the model predicts hidden stretches of held-out DNA, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.data.baselines import Baselines, measure_baselines
from dnabert_rm.data.dataset import WindowDataset, held_out_readers
from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches, find_stretches, read_regions
from dnabert_rm.distributed.collectives import on_first_rank, sum_over_ranks
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.masking.hidden_stretches import HiddenBatch, WindowShape, make_batches, place_windows
from dnabert_rm.masking.spans import plateau_loss
from dnabert_rm.model.losses import hidden_base_bits
from dnabert_rm.train.engine import Engine
from dnabert_rm.train.validation_record import (
    BITS,
    COMPOSITION,
    HALF_WIDTH,
    KMER_FREQUENCIES,
    MARKOV_HALF_WIDTH,
    NON_OVERLAPPING,
)
from dnabert_rm.utils.progress import notice
from dnabert_rm.utils.statistics import half_width, mean_over_groups


def make_bits_per_base(
    held_out: WindowDataset, training: WindowDataset, config: RunConfig, ranks: Ranks, micro_batch: int
) -> BitsPerBase | None:
    """Return the measurement of a run, or None if it is off or impossible. Rank 0 prints why it is impossible.

    Args:
        held_out: Held-out windows, whose shape is the shape of the measured windows.
        training: Training windows, for the lines to compare with.
        config: The run's configuration.
        ranks: This rank.
        micro_batch: Number of windows per forward pass.
    """
    validation, k = config.validation, held_out.tokenizer.k
    if k is None or validation.regions == 0:
        return None
    shape = WindowShape(k, held_out.stride, held_out.num_tokens)
    asked = sorted(set(validation.hidden_bases))
    hidden_bases = [n for n in asked if shape.can_hide(n)]
    problems = []
    if too_long := [str(n) for n in asked if n not in hidden_bases]:
        problems.append(f"a window of {config.data.window} tokens is too short to hide {', '.join(too_long)} bases")
    if validation.split == config.data.split:
        problems.append(f"split {validation.split} is also trained on")
        hidden_bases = []
    if problems and ranks.is_first:
        notice(f"bits per base: not measured{' for these' if hidden_bases else ''}, because {' and '.join(problems)}")
    return BitsPerBase(shape, hidden_bases, training, config, ranks, micro_batch) if hidden_bases else None


class BitsPerBase:
    """Measurement of bits per base on one rank. Rank r scores the batches r, r + world_size, r + 2 * world_size, …

    Every rank makes all batches, so that all ranks run the same number of forward passes, as ZeRO-3 requires.
    """

    def __init__(
        self,
        shape: WindowShape,
        hidden_bases: list[int],
        training: WindowDataset,
        config: RunConfig,
        ranks: Ranks,
        micro_batch: int,
    ) -> None:
        """Prepare the measurement without reading a shard. `make_bits_per_base` describes the arguments."""
        self.ranks = ranks
        self._training = training
        self._shape = shape
        self._config = config
        self._hidden_bases = hidden_bases
        self._micro_batch = micro_batch
        self._regions: list[HeldOutRegion] | None = None
        self._stretches: list[HiddenStretches] = []
        self._batches: list[list[HiddenBatch]] = []
        self._lines: Baselines | None = None

    def run(self, engine: Engine, reset_watchdog: Callable[[str], None]) -> dict[str, Any]:
        """Return bits per base by number of hidden bases, and the lines to compare them with.

        Every rank must call this. The dict is empty if the held-out segments are too short. With another number of
        ranks the values differ only by rounding.
        """
        if self._regions is None:
            self._prepare(reset_watchdog)
        if not self._regions or not self._lines:
            return {}
        found: dict[str, dict[str, Any]] = {BITS: {}, HALF_WIDTH: {}}
        differences: dict[str, dict[str, Any]] = {}
        for stretches, batches in zip(self._stretches, self._batches, strict=True):
            n = str(stretches.num_hidden)
            sums, counts = self._sums(engine, stretches, batches, reset_watchdog)
            if counts.any():
                found[BITS][n], found[HALF_WIDTH][n] = _mean_and_half_width(sums, counts)
            for order, line in self._markov_sums(stretches).items() if self._shape.stride == 1 else ():
                differences.setdefault(order, {})[n] = _mean_and_half_width(sums - line, counts)[1]
        if not found[BITS]:
            return {}
        lines = self._lines.to_json()
        if self._shape.stride > 1:
            return found | {COMPOSITION: lines[COMPOSITION], NON_OVERLAPPING: True}
        plateau = plateau_loss(lines[KMER_FREQUENCIES])
        return found | {MARKOV_HALF_WIDTH: differences} | lines | {KMER_FREQUENCIES: plateau}

    def _prepare(self, reset_watchdog: Callable[[str], None]) -> None:
        """Read the regions, and compute or load the reference lines. Rank 0 does both for all ranks."""
        reset_watchdog("reference lines")
        num_regions, context = self._config.validation.regions, self._shape.num_bases
        self._regions = on_first_rank(
            lambda: read_regions(held_out_readers(self._config), num_regions, context), self.ranks
        )
        if not self._regions:
            return
        self._stretches = [find_stretches(self._regions, n) for n in self._hidden_bases]
        codes = [region.codes for region in self._regions]
        for found in self._stretches:
            windows = place_windows(list(map(len, codes)), found.region, found.start, found.num_hidden, self._shape)
            batches = make_batches(codes, windows, found.start, found.num_hidden, self._shape, self._micro_batch)
            self._batches.append(list(batches))
        if self.ranks.is_first:
            notice("validation: needs the Markov chains of the training data, which are counted once per data set")
        regions, readers, k = self._regions, self._training.readers, self._shape.k
        self._lines = on_first_rank(lambda: measure_baselines(readers, regions, self._stretches, k), self.ranks)

    def _markov_sums(self, stretches: HiddenStretches) -> dict[str, NDArray[np.float64]]:
        """Return the summed bits of each region, (R,), under the Markov chain of each order."""
        assert self._regions is not None and self._lines is not None
        region, num_regions = stretches.region, len(self._regions)
        sums = {
            line: np.bincount(region, bits[stretches.num_hidden].sum(axis=1), num_regions).astype(np.float64)
            for line, bits in self._lines.bits.items()
        }
        return {line.removeprefix("markov_"): values for line, values in sums.items() if line != COMPOSITION}

    def _sums(
        self,
        engine: Engine,
        stretches: HiddenStretches,
        batches: list[HiddenBatch],
        reset_watchdog: Callable[[str], None],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each region's summed bits and number of hidden bases, both (R,), over all batches of all ranks."""
        assert self._regions is not None
        device, ranks = self.ranks.device, self.ranks
        region = torch.from_numpy(stretches.region).to(device)
        sums = torch.zeros(2, len(self._regions), dtype=torch.float64, device=device)
        for first in range(0, len(batches), ranks.world_size):
            reset_watchdog("validation")
            number = first + ranks.rank
            batch = batches[min(number, len(batches) - 1)]  # a rank without a batch repeats the last one
            inputs = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.positions))
            logits = engine(*inputs)
            if number < len(batches):
                hidden, true_codes = (torch.from_numpy(array).to(device) for array in (batch.hidden, batch.true_codes))
                bits = hidden_base_bits(logits, hidden, true_codes, self._shape.k)
                of_base = region[torch.from_numpy(batch.stretches).to(device)]
                sums[0].index_add_(0, of_base, bits)
                sums[1].index_add_(0, of_base, torch.ones_like(bits))
        totals = sum_over_ranks(sums, ranks).cpu().numpy()
        return totals[0], totals[1]


def _mean_and_half_width(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the mean of all hidden bases, and half of its 95 % interval over regions, from the values of regions."""
    mean, error = mean_over_groups(sums, counts)
    return mean, None if error is None else half_width(error, int((counts > 0).sum()))
