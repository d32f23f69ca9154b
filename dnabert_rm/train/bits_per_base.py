"""Bits per base during a run: how well the model predicts hidden stretches of held-out DNA, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches, find_stretches, read_regions
from dnabert_rm.data.reference_lines import ReferenceLines, reference_lines
from dnabert_rm.distributed.collectives import on_first_rank, sum_over_ranks
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.masking.hidden_stretches import HiddenBatch, WindowShape, make_batches, place_windows
from dnabert_rm.masking.spans import loss_without_neighbours
from dnabert_rm.model.losses import hidden_base_bits
from dnabert_rm.train.engine import Engine
from dnabert_rm.utils.errors import UserError
from dnabert_rm.utils.progress import notice

BITS = "bits_per_base"


class BitsPerBase:
    """Measurement of bits per base on one rank. Rank r scores the batches r, r + world_size, r + 2 * world_size, …

    Every rank makes all batches, so that all ranks run the same number of forward passes, as ZeRO-3 requires.
    """

    def __init__(
        self, held_out: WindowDataset, training: WindowDataset, config: RunConfig, ranks: Ranks, micro_batch: int
    ) -> None:
        """Prepare the measurement without reading a shard. `micro_batch` is the number of windows per forward pass."""
        assert held_out.tokenizer.k is not None, "bits per base need k-mers"
        self.ranks = ranks
        self._held_out = held_out
        self._training = training
        self._shape = WindowShape(held_out.tokenizer.k, held_out.stride, held_out.num_tokens)
        self._num_regions = config.validation.regions
        self._hidden_bases = [n for n in sorted(set(config.validation.hidden_bases)) if self._shape.can_hide(n)]
        self._micro_batch = micro_batch
        self._regions: list[HeldOutRegion] | None = None
        self._stretches: list[HiddenStretches] = []
        self._batches: list[list[HiddenBatch]] = []
        self._lines: ReferenceLines | None = None

    def run(self, engine: Engine, reset_watchdog: Callable[[str], None]) -> dict[str, Any]:
        """Return bits per base by number of hidden bases, and the lines to compare them with.

        Every rank must call this. The dict is empty if the held-out segments are too short. With another number of
        ranks the values differ only by rounding.
        """
        if self._regions is None:
            self._prepare(reset_watchdog)
        if not self._regions or not self._lines:
            return {}
        bits = {}
        for stretches, batches in zip(self._stretches, self._batches, strict=True):
            total, count = self._sum(engine, batches, reset_watchdog)
            if count:
                bits[str(stretches.num_hidden)] = total / count
        if not bits:
            return {}
        lines = self._lines.to_json()
        return {BITS: bits, **lines, "kmer_frequencies": loss_without_neighbours(lines["kmer_frequencies"])}

    def _prepare(self, reset_watchdog: Callable[[str], None]) -> None:
        """Read the regions on every rank, and compute or load the reference lines on rank 0."""
        try:
            self._regions = read_regions(self._held_out.readers, self._num_regions, self._shape.num_bases)
        except UserError as error:
            error.on_one_rank = True  # other ranks may have read their regions
            raise
        if not self._regions:
            return
        self._stretches = [find_stretches(self._regions, n) for n in self._hidden_bases]
        codes = [region.codes for region in self._regions]
        for found in self._stretches:
            windows = place_windows(list(map(len, codes)), found.region, found.start, found.num_hidden, self._shape)
            batches = make_batches(codes, windows, found.start, found.num_hidden, self._shape, self._micro_batch)
            self._batches.append(list(batches))
        reset_watchdog("reference lines")
        if self.ranks.is_first:
            notice("validation: loading the Markov lines of the training data, or computing them (once per data set)")
        regions, readers, k = self._regions, self._training.readers, self._shape.k
        self._lines = on_first_rank(lambda: reference_lines(readers, regions, self._stretches, k), self.ranks)

    def _sum(
        self, engine: Engine, batches: list[HiddenBatch], reset_watchdog: Callable[[str], None]
    ) -> tuple[float, int]:
        """Return the summed bits and the number of hidden bases over all batches of all ranks."""
        device, ranks = self.ranks.device, self.ranks
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for first in range(0, len(batches), ranks.world_size):
            reset_watchdog("validation")
            number = first + ranks.rank
            batch = batches[min(number, len(batches) - 1)]  # a rank without a batch repeats the last one
            inputs = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.positions))
            logits = engine(*inputs)
            if number < len(batches):
                hidden, true_codes = (torch.from_numpy(array).to(device) for array in (batch.hidden, batch.true_codes))
                bits = hidden_base_bits(logits, hidden, true_codes, self._shape.k)
                sums += torch.stack([bits.sum(), bits.new_tensor(len(true_codes))])
        total, count = sum_over_ranks(sums, ranks).tolist()
        return total, int(count)
