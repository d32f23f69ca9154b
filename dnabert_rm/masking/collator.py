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

from dnabert_rm import draws
from dnabert_rm.errors import ConfigError
from dnabert_rm.kmer import CLS_ID, NUM_SPECIAL, SEP_ID
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.masking.spans import REPLACEMENTS, draw_centres, draw_spans, replace, unite_spans

IGNORE = -100
"""The label of what is not predicted, as in PyTorch's and transformers' losses."""


@dataclass(frozen=True)
class MaskedBatch:
    """`input_ids` and `labels` (B, L) int64, labels -100 where nothing is predicted; `span`, `phase` (B,) int64."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    span: NDArray[np.int64]
    phase: NDArray[np.int64]


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
        self._keys = {what: draws.key(seed, f"mask/{what}") for what in ("span", "centre", "replacement")}

    def mask(self, samples: NDArray[np.int64], ids: NDArray) -> MaskedBatch:
        """Mask windows `ids` (B, T), any integer dtype, whose sample indices are `samples` (B,)."""
        phase = self.schedule.phase_of(self.step_of(samples))
        span = np.empty(len(samples), dtype=np.int64)
        span_keys = draws.fold(self._keys["span"], samples)
        for number in np.unique(phase):
            here = phase == number
            span[here] = draw_spans(span_keys[here], self.schedule.spans[number - 1])
        rate = np.asarray(self.schedule.rates)[phase - 1]
        real = ids >= NUM_SPECIAL
        centres = draw_centres(draws.fold(self._keys["centre"], samples), ids.shape[1], rate) & real
        masked = unite_spans(centres, span) & real

        num_windows, num_tokens = ids.shape
        input_ids = np.empty((num_windows, num_tokens + 2), dtype=np.int64)
        input_ids[:, 0], input_ids[:, -1] = CLS_ID, SEP_ID
        labels = np.full_like(input_ids, IGNORE)
        np.copyto(labels[:, 1:-1], ids, where=masked, casting="unsafe")
        keys = draws.fold(self._keys["replacement"], samples)
        input_ids[:, 1:-1] = replace(ids.astype(np.int64), masked, keys, self.vocab_size, self.replacement)
        return MaskedBatch(input_ids, labels, span, phase)

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
        flat = masked.labels.reshape(-1)
        positions = np.flatnonzero(flat != IGNORE)
        if len(positions) == 0:
            positions = np.zeros(1, dtype=np.int64)
        arrays = {
            "input_ids": masked.input_ids,
            "positions": positions,
            "targets": flat[positions],
            "span": masked.span,
            "samples": samples,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
