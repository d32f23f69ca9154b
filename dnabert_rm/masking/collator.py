"""The collate step: windows and their sample indices in, a masked batch out.

The step is learnt from the sample index, never from a counter, so prefetching workers can't drift
from the schedule. Shapes: B windows, T real tokens, L = T + 2 with [CLS] and [SEP], M masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.genome.kmer import CLS_ID, NUM_SPECIAL, SEP_ID
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.masking.spans import REPLACEMENTS, draw_centres, draw_spans, replace, span_table, unite_spans
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

IGNORE = -100
"""The label of what is not predicted, as in PyTorch's and transformers' losses."""
TOKENS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class MaskedBatch:
    """A masked batch; arrays int64.

    `input_ids` (B, L); `positions` (M,) of the masked tokens in the flattened batch, rising; `targets` (M,) what
    they were; `span` and `phase` (B,).
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    span: NDArray[np.int64]
    phase: NDArray[np.int64]

    def labels(self) -> NDArray[np.int64]:
        """(B, L) int64, the original token where one is predicted, -100 elsewhere."""
        labels = np.full_like(self.input_ids, IGNORE)
        labels.reshape(-1)[self.positions] = self.targets
        return labels


class RandomMaskCollator:
    """Masks windows by their sample index: the same index, seed and step give the same mask anywhere."""

    def __init__(
        self,
        schedule: MaskSchedule,
        step_of: Callable[[ArrayLike], NDArray[np.int64]],
        vocab_size: int,
        seed: int,
        *,
        replacement: str = "token",
    ) -> None:
        """Args: `step_of` maps sample indices (N,) to steps (N,); `replacement` see `spans.replace`."""
        if replacement not in REPLACEMENTS:
            raise ConfigError(f"masking.replacement {replacement!r} must be one of {', '.join(REPLACEMENTS)}")
        self.schedule, self.step_of, self.vocab_size, self.replacement = schedule, step_of, vocab_size, replacement
        self._span_table, self._rates = span_table(schedule.spans), np.array(schedule.rates)
        self._keys = {what: random.key(seed, f"mask/{what}") for what in ("span", "centre", "replacement")}

    def mask(self, samples: NDArray[np.int64], ids: NDArray) -> MaskedBatch:
        """Mask windows `ids` (B, T), any integer dtype, whose sample indices are `samples` (B,)."""
        phase = self.schedule.phase_of(self.step_of(samples))
        span = self.spans(samples)
        rate = self._rates[phase - 1]
        num_windows, num_tokens = ids.shape
        input_ids = np.empty((num_windows, num_tokens + 2), dtype=np.int64)
        input_ids[:, 0], input_ids[:, -1] = CLS_ID, SEP_ID
        input_ids[:, 1:-1] = ids
        positions, targets = [], []
        # A few windows at a time: what they need stays in the processor's cache, which is several times faster.
        rows = max(1, TOKENS_AT_ONCE // num_tokens)
        for first in range(0, num_windows, rows):
            part = slice(first, first + rows)
            where, were = self._mask_some(samples[part], ids[part], input_ids[part], span[part], rate[part])
            positions.append(where + first * (num_tokens + 2))
            targets.append(were)
        return MaskedBatch(input_ids, np.concatenate(positions), np.concatenate(targets), span, phase)

    def spans(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The span of each window, (B,) int64."""
        row = self.schedule.phase_of(self.step_of(samples)) - 1
        return draw_spans(random.fold(self._keys["span"], samples), *self._span_table, row)

    def _mask_some(
        self,
        samples: NDArray[np.int64],
        ids: NDArray,
        input_ids: NDArray[np.int64],
        span: NDArray[np.int64],
        rate: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mask `input_ids` (B, L) in place; returns the masked positions in it, flattened, and what they were, (M,)."""
        num_tokens, is_real = ids.shape[1], ids >= NUM_SPECIAL
        centres = draw_centres(random.fold(self._keys["centre"], samples), num_tokens, rate) & is_real
        masked = unite_spans(centres, span) & is_real
        rows, columns = np.divmod(np.flatnonzero(masked), num_tokens)
        positions = rows * (num_tokens + 2) + columns + 1
        flat = input_ids.reshape(-1)
        targets = flat[positions]
        keys = random.fold(self._keys["replacement"], samples)
        flat[positions] = replace(targets, rows, columns, keys, self.vocab_size, self.replacement)
        return positions, targets

    def __call__(self, batch: tuple[NDArray[np.int64], NDArray]) -> dict[str, Any]:
        """The micro-batch that the training loop takes, as tensors.

        Args: `batch` sample indices (B,) and windows (B, T).
        Returns `input_ids` (B, L) int64, `positions` (M,) int64 of masked tokens in the flattened batch,
        `targets` (M,) int64, `span` (B,) int64, `samples` (B,) int64. Where no token is masked, one position
        with target -100 stands in: under ZeRO-3 every rank has to run the head.
        """
        import torch

        samples, ids = batch
        masked = self.mask(samples, ids)
        positions, targets = masked.positions, masked.targets
        if len(positions) == 0:
            positions, targets = np.zeros(1, dtype=np.int64), np.full(1, IGNORE)
        arrays = {
            "input_ids": masked.input_ids,
            "positions": positions,
            "targets": targets,
            "span": masked.span,
            "samples": samples,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_collator(
    config: RunConfig, schedule: MaskSchedule, step_of: Callable[[ArrayLike], NDArray[np.int64]], vocab_size: int
) -> RandomMaskCollator:
    """The collator of a run configuration; `step_of` gives the step of each sample index."""
    return RandomMaskCollator(schedule, step_of, vocab_size, config.train.seed, replacement=config.masking.replacement)
