"""Tokenized rows for Trainer, their collation into batches, and the pooling of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dnabert_rm.finetune.tasks import IGNORE_INDEX
from dnabert_rm.tokenizer import DnaTokenizer
from dnabert_rm.tokenizer.windows import has_known_kmer, middle, pad_rows, windows


class BaseTokenPairs(NamedTuple):
    """Pairs of a base and a token that predicts the base, in one window. Pair i is `bases[i]` and `tokens[i]`."""

    bases: NDArray
    """Index of the base in the sequence."""
    tokens: NDArray
    """Index of the token in the window."""


@dataclass(frozen=True)
class TokenizedRow:
    """One sequence as model input, and its target."""

    windows: list[NDArray]
    """Token ids of each window, int32 with special tokens; most rows have one window."""
    pairs: list[BaseTokenPairs] | None
    """Base-token pairs of each window if each base has a target, otherwise None."""
    target: NDArray


class TokenRows(Dataset):
    """Tokenized rows of one table.

    Index `len(rows)` gives a padding row, whose target is `IGNORE_INDEX`. Padding rows complete the last batch of an
    epoch.
    """

    def __init__(self, rows: list[TokenizedRow], num_long: int):
        self.rows = rows
        self.num_long = num_long
        """Number of rows with more tokens than the maximum input length."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenizedRow:
        if index == len(self.rows):
            first = self.rows[0]
            return TokenizedRow(first.windows, first.pairs, np.full_like(first.target, IGNORE_INDEX))
        return self.rows[index]

    @property
    def targets(self) -> list[NDArray]:
        """Return the target of each row."""
        return [row.target for row in self.rows]

    @property
    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, summed over its windows."""
        return [sum(map(len, row.windows)) for row in self.rows]

    @property
    def num_empty(self) -> int:
        """Return the number of rows that are shorter than one k-mer."""
        return self.lengths.count(2)


def token_rows(
    tokenizer: DnaTokenizer,
    sequences: Sequence[str],
    targets: Sequence[NDArray],
    max_tokens: int,
    *,
    long: str = "middle",
    per_base: bool = False,
) -> TokenRows:
    """Tokenize sequences, with `[CLS]` and `[SEP]` around each window.

    If a sequence has more than `max_tokens` tokens, `long="middle"` keeps one window in the middle, and
    `long="window"` cuts overlapping windows. A window without a known k-mer is left out, unless no window of the
    sequence has a known k-mer. With `per_base`, a base that no token predicts gets the target `IGNORE_INDEX`.
    """
    max_kmers = max_tokens - 2
    all_ids = tokenizer.token_ids(sequences)
    rows = []
    for sequence, ids, target in zip(sequences, all_ids, targets, strict=True):
        ranges = [middle(len(ids), max_kmers)] if long == "middle" else list(windows(len(ids), max_kmers))
        ranges = [window for window in ranges if has_known_kmer(ids[window.start : window.stop])] or ranges
        pairs: list[BaseTokenPairs] | None = None
        if per_base:
            token_ranges = tokenizer.token_ranges(sequence)
            pairs = [base_token_pairs(window, token_ranges) for window in ranges]
            pairs = [BaseTokenPairs(bases, tokens + 1) for bases, tokens in pairs]  # + 1 for [CLS]
            is_predicted = np.isin(np.arange(len(target)), np.concatenate([pair.bases for pair in pairs]))
            target = np.where(is_predicted, target, IGNORE_INDEX)
        cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        window_ids = [np.concatenate((cls, ids[window.start : window.stop], sep), dtype=np.int32) for window in ranges]
        rows.append(TokenizedRow(window_ids, pairs, target))
    return TokenRows(rows, num_long=sum(len(ids) > max_kmers for ids in all_ids))


def base_token_pairs(window: range, token_ranges: NDArray[np.int64]) -> BaseTokenPairs:
    """Return a pair for each token of a window and each base that the token predicts.

    Args:
        window: Range of indices into the sequence's tokens.
        token_ranges: Half-open base range that each token of the sequence predicts, shape (tokens, 2).
    """
    starts, ends = token_ranges[window.start : window.stop].T
    lengths = ends - starts
    first_pair = np.cumsum(lengths) - lengths
    bases = np.arange(lengths.sum()) + np.repeat(starts - first_pair, lengths)
    return BaseTokenPairs(bases, np.repeat(np.arange(len(window)), lengths))


def collate(rows: Sequence[TokenizedRow]) -> dict[str, Tensor]:
    """Collate tokenized rows into one batch.

    Shapes: B rows, V windows of at most W tokens, L labels, N bases of the longest row, P pairs (logit vector, output).

    - `input_ids` (V, W).
    - `attention_mask` (V, W), only if a window is padded, because attention kernels are faster without a mask.
    - `labels` (B,), (B, L), or (B, N) padded with `IGNORE_INDEX`.
    - `logit_indices` (P,) and `output_indices` (P,), only for per-base tasks, or if a row has several windows.
      An output is the mean of all logit vectors paired with it. Pair i is logit vector `logit_indices[i]` and output
      `output_indices[i]`. The indices number windows and rows. For per-base tasks they number (window, token) and
      (row, base) positions, in row-major order.
    """
    all_windows = [window for row in rows for window in row.windows]
    ids, mask = pad_rows(all_windows, max(map(len, all_windows)))
    labels = _pad_targets([row.target for row in rows])
    batch: dict[str, Any] = {"labels": labels, "input_ids": ids}
    if not mask.all():
        batch["attention_mask"] = mask
    row_of_window = np.repeat(np.arange(len(rows)), [len(row.windows) for row in rows])
    if rows[0].pairs is not None:
        window_width = ids.shape[1]
        row_width = labels.shape[1]
        pairs = [pair for row in rows for pair in row.pairs or ()]
        batch["logit_indices"] = np.concatenate(
            [window * window_width + pair.tokens for window, pair in enumerate(pairs)]
        )
        batch["output_indices"] = np.concatenate(
            [row * row_width + pair.bases for row, pair in zip(row_of_window, pairs, strict=True)]
        )
    elif len(all_windows) > len(rows):
        batch["logit_indices"] = np.arange(len(all_windows))
        batch["output_indices"] = row_of_window
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _pad_targets(targets: Sequence[NDArray]) -> NDArray:
    """Return the targets as one array. If their lengths differ, pad them with `IGNORE_INDEX`."""
    if targets[0].ndim == 0 or len({len(target) for target in targets}) == 1:
        return np.stack(targets)
    padded = np.full((len(targets), max(map(len, targets))), IGNORE_INDEX, dtype=targets[0].dtype)
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = target
    return padded


def pool_logits(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Average logits into outputs of shape (rows, labels), or (rows, bases, labels) for per-base tasks.

    `logits` have shape (windows, labels) from a sequence head, or (windows, tokens, labels) from a token head. `batch`
    comes from `collate`. A base that no token predicts gets zeros.
    """
    if "logit_indices" not in batch:
        return logits
    flat_logits = logits.float().flatten(0, -2)
    output_indices = batch["output_indices"]
    output_shape = batch["labels"].shape if logits.dim() == 3 else batch["labels"].shape[:1]
    num_outputs = output_shape.numel()
    sums = flat_logits.new_zeros(num_outputs, flat_logits.shape[-1])
    sums = sums.index_add(0, output_indices, flat_logits[batch["logit_indices"]])
    counts = torch.bincount(output_indices, minlength=num_outputs).clamp(min=1)
    return (sums / counts[:, None]).view(*output_shape, -1)
