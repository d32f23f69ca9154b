"""Collator that makes a masked batch from windows and their sample indices.

The masking phase depends on the training step. The step is computed from the sample index, so
that data-loader workers that prefetch batches still use the right phase.

Shapes: B windows, T tokens without special tokens, L = T + 2 with [CLS] and [SEP], M masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.genome.kmer import CLS_ID, NUM_SPECIAL, SEP_ID
from dnabert_rm.genome.soft_mask import SoftMask
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.masking.spans import REPLACEMENTS, draw_centres, draw_spans, replace, span_table, unite_spans
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

IGNORE = -100
"""Label of positions without a prediction, as in PyTorch's and transformers' losses."""
CHUNK_TOKENS = 1 << 16
"""Number of tokens that are masked at a time."""


@dataclass(frozen=True)
class MaskedBatch:
    """A masked batch: int64 arrays for B windows of L tokens. M is the number of masked tokens in the batch.

    `input_ids` (B, L) are the tokens after masking. `positions` (M,) are the positions of masked tokens in the
    flattened batch, ascending. `targets` (M,) are the original tokens at these positions. `span` and `phase` (B,) are
    the span length and the masking phase of each window.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    span: NDArray[np.int64]
    phase: NDArray[np.int64]

    def labels(self) -> NDArray[np.int64]:
        """Return labels (B, L) int64 for B windows of L tokens: original tokens at masked positions, else -100."""
        labels = np.full_like(self.input_ids, IGNORE)
        labels.reshape(-1)[self.positions] = self.targets
        return labels


class RandomMaskCollator:
    """Collator that masks windows. A window's mask depends only on the seed and the window's sample index and step."""

    def __init__(
        self,
        schedule: MaskSchedule,
        step_of: Callable[[ArrayLike], NDArray[np.int64]],
        vocab_size: int,
        seed: int,
        *,
        replacement: str = "token",
        repeat_weight: float = 1.0,
    ) -> None:
        """Make a collator.

        Args:
            schedule: Span lengths and probability of span centres in each training step.
            step_of: Function from N sample indices to N training steps, (N,) → (N,).
            vocab_size: Number of tokens in the vocabulary.
            seed: Seed of the masks.
            replacement: How masked tokens are replaced; see `spans.replace`.
            repeat_weight: Weight of soft-masked bases in the training loss.

        Raises `ConfigError` for an unknown `replacement`.
        """
        if replacement not in REPLACEMENTS:
            raise ConfigError(f"masking.replacement {replacement!r} must be one of {', '.join(REPLACEMENTS)}")
        self.schedule = schedule
        self.step_of = step_of
        self.vocab_size = vocab_size
        self.replacement = replacement
        self.repeat_weight = repeat_weight
        self._span_table = span_table(schedule.spans)
        self._rates = np.array(schedule.rates)
        self._keys = {purpose: random.key(seed, f"mask/{purpose}") for purpose in ("span", "centre", "replacement")}

    def mask(self, samples: NDArray[np.int64], ids: NDArray) -> MaskedBatch:
        """Return a masked batch of B windows with T tokens each.

        `ids` (B, T) are the windows' tokens, of any integer dtype. `samples` (B,) are the windows' sample indices.
        """
        phase = self.schedule.phase_of(self.step_of(samples))
        span = self.spans(samples)
        rate = self._rates[phase - 1]
        num_windows, num_tokens = ids.shape
        input_ids = np.empty((num_windows, num_tokens + 2), dtype=np.int64)
        input_ids[:, 0], input_ids[:, -1] = CLS_ID, SEP_ID
        input_ids[:, 1:-1] = ids
        positions, targets = [], []
        # Small chunks stay in the processor's cache, which is several times faster.
        chunk_windows = max(1, CHUNK_TOKENS // num_tokens)
        for first in range(0, num_windows, chunk_windows):
            chunk = slice(first, first + chunk_windows)
            in_chunk, originals = self._mask_chunk(
                samples[chunk], ids[chunk], input_ids[chunk], span[chunk], rate[chunk]
            )
            positions.append(in_chunk + first * (num_tokens + 2))
            targets.append(originals)
        return MaskedBatch(input_ids, np.concatenate(positions), np.concatenate(targets), span, phase)

    def spans(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the span length for each of B windows, (B,) int64. `samples` (B,) are the windows' sample indices."""
        row = self.schedule.phase_of(self.step_of(samples)) - 1
        return draw_spans(random.fold(self._keys["span"], samples), *self._span_table, row)

    def _mask_chunk(
        self,
        samples: NDArray[np.int64],
        ids: NDArray,
        input_ids: NDArray[np.int64],
        span: NDArray[np.int64],
        rate: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mask B windows of T tokens in place, and return the positions and original tokens of the M masked tokens.

        The positions are in the flattened `input_ids`. Both results are (M,) int64.

        Args:
            samples: Sample indices, (B,).
            ids: Original tokens, (B, T).
            input_ids: The same tokens between [CLS] and [SEP], (B, T + 2). Masked tokens are replaced here.
            span: Span length in each window, (B,).
            rate: Probability that a token is the centre of a span, for each window, (B,).
        """
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

    def base_weights(self, masked: MaskedBatch, soft_mask: SoftMask) -> NDArray[np.float32]:
        """Return the weights of the bases of the M masked tokens in the training loss, (M, k)."""
        num_windows, width = masked.input_ids.shape
        row_starts = width * np.arange(num_windows + 1)
        counts = np.diff(np.searchsorted(masked.positions, row_starts))
        tokens = masked.positions - np.repeat(row_starts[:-1] + 1, counts)
        return soft_mask.base_weights(counts, tokens, self.repeat_weight)

    def __call__(self, batch: tuple[Any, ...]) -> dict[str, Any]:
        """Return a masked batch as tensors, int64 unless stated otherwise.

        `batch` holds sample indices (B,), B windows of T tokens (B, T) and optionally their `SoftMask`.

        `input_ids` (B, T + 2) are the tokens with [CLS] and [SEP]. `positions` (M,) are the positions of the M masked
        tokens in the flattened batch, and `targets` (M,) the original tokens. `span` (B,) and `samples` (B,) are the
        span length and sample index of each window. With a soft mask, `base_weights` (M, k) float32 are the weights of
        the masked tokens' bases. If no token is masked, one position with target -100 and weights 0 is returned,
        because under ZeRO-3 every rank has to run the language-model head.
        """
        import torch

        samples, ids, *soft_masks = batch
        masked = self.mask(samples, ids)
        arrays: dict[str, NDArray] = {
            "input_ids": masked.input_ids,
            "positions": masked.positions,
            "targets": masked.targets,
            "span": masked.span,
            "samples": samples,
        }
        for soft_mask in soft_masks:
            arrays["base_weights"] = self.base_weights(masked, soft_mask)
        if len(masked.positions) == 0:
            arrays |= {"positions": np.zeros(1, dtype=np.int64), "targets": np.full(1, IGNORE)}
            if "base_weights" in arrays:
                arrays["base_weights"] = np.zeros((1, arrays["base_weights"].shape[1]), dtype=np.float32)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_collator(
    config: RunConfig, schedule: MaskSchedule, step_of: Callable[[ArrayLike], NDArray[np.int64]], vocab_size: int
) -> RandomMaskCollator:
    """Return the collator for a configuration. `step_of` converts N sample indices to N training steps, (N,) → (N,)."""
    return RandomMaskCollator(
        schedule,
        step_of,
        vocab_size,
        config.train.seed,
        replacement=config.masking.replacement,
        repeat_weight=config.data.repeat_weight,
    )
