"""Rows of tokens for Trainer: the windows of each sequence, its target, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dnabert_rm.finetune.task_heads import IGNORED
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.windows import pad_rows, windows


@dataclass(frozen=True)
class Row:
    """One sequence as the model gets it."""

    windows: list[NDArray]
    """Tokens of each window, (T_i,) int32 with special tokens; mostly there is one window."""
    bases: list[NDArray] | None
    """For a class for each base: which base the pairs of `speakers` are about, of each window (P_i,)."""
    tokens: list[NDArray] | None
    """And which token of the window speaks in them, (P_i,)."""
    target: NDArray


class TokenRows(Dataset):
    """The rows of one table. One index past the end is a row that weighs nothing: it fills up a last batch."""

    def __init__(self, rows: list[Row], num_long: int):
        self.rows = rows
        self.num_long = num_long
        """Rows with more tokens than the model takes at once."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        if index == len(self.rows):
            first = self.rows[0]
            return Row(first.windows, first.bases, first.tokens, np.full_like(first.target, IGNORED))
        return self.rows[index]

    @property
    def targets(self) -> list[NDArray]:
        """The target of each row."""
        return [row.target for row in self.rows]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [sum(map(len, row.windows)) for row in self.rows]

    @property
    def num_empty(self) -> int:
        """Rows too short for a single k-mer."""
        return self.lengths.count(2)


def token_rows(
    tokenizer: KmerTokenizer,
    sequences: Sequence[str],
    targets: Sequence[NDArray],
    max_tokens: int,
    *,
    long: str = "middle",
    per_base: bool = False,
) -> TokenRows:
    """Tokens of each sequence between `[CLS]` and `[SEP]`.

    Of more than `max_tokens` the "middle" is kept, or `long` = "window" cuts them into windows that overlap. Where
    targets are `per_base`, those of bases that no token speaks for become `IGNORED`.
    """
    room = max_tokens - 2
    ids = tokenizer.kmer_ids(sequences)
    rows = []
    for row, target in zip(ids, targets, strict=True):
        pieces = [middle(len(row), room)] if long == "middle" else list(windows(len(row), room))
        bases = tokens = None
        if per_base:
            pairs = [speakers(piece, len(row), len(target), tokenizer.k, tokenizer.step) for piece in pieces]
            bases, tokens = [pair[0] for pair in pairs], [pair[1] + 1 for pair in pairs]  # 1 for [CLS]
            seen = np.isin(np.arange(len(target)), np.concatenate(bases))
            target = np.where(seen, target, IGNORED)
        ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        pieces_ids = [np.concatenate((ends[0], row[p.start : p.stop], ends[1]), dtype=np.int32) for p in pieces]
        rows.append(Row(pieces_ids, bases, tokens, target))
    return TokenRows(rows, num_long=sum(len(row) > room for row in ids))


def middle(num_tokens: int, room: int) -> range:
    """The `room` tokens in the middle of a sequence; where they can't be centred, one more is cut on the right."""
    start = max(0, num_tokens - room) // 2
    return range(start, min(num_tokens, start + room))


def speakers(window: range, num_tokens: int, num_bases: int, k: int, step: int) -> tuple[NDArray, NDArray]:
    """Which token speaks for which base: bases (P,) of the sequence and tokens (P,) of the window, pairs.

    A k-mer speaks for the k bases that it covers: overlapping ones (`step` 1) share each base, up to k of them. Of
    non-overlapping ones (`step` k) the sequence's last speaks for the bases behind it too, fewer than k, which are in
    no k-mer. `window` is a part of the sequence's `num_tokens` tokens.
    """
    tokens = np.arange(window.start, window.stop)
    starts = tokens * step
    ends = np.where(tokens == num_tokens - 1, num_bases, starts + k)
    lengths = ends - starts
    speaking = np.repeat(tokens - window.start, lengths)
    first_pair = np.cumsum(lengths) - lengths
    return np.arange(len(speaking)) + np.repeat(starts - first_pair, lengths), speaking


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """One batch of B rows with V windows of at most W tokens.

    `labels` (B,), (B, L) or, padded with `IGNORED`, (B, bases); `input_ids` (V, W) and, where anything is padded,
    `attention_mask` (without one attention runs its faster kernels); where the answers to a row are a mean of several
    logits, `sources` (P,), positions among the flattened logits, and `answers` (P,), which answer each of them is for.
    """
    pieces = [piece for row in rows for piece in row.windows]
    ids, mask = pad_rows(pieces, max(map(len, pieces)))
    labels = _stacked([row.target for row in rows])
    batch: dict[str, Any] = {"labels": labels, "input_ids": ids}
    if not mask.all():
        batch["attention_mask"] = mask
    row_of_window = np.repeat(np.arange(len(rows)), [len(row.windows) for row in rows])
    if rows[0].tokens is not None:
        tokens = [tokens for row in rows for tokens in row.tokens or ()]
        bases = [bases for row in rows for bases in row.bases or ()]
        batch["sources"] = np.concatenate([window * ids.shape[1] + one for window, one in enumerate(tokens)])
        width = labels.shape[1]
        batch["answers"] = np.concatenate([row * width + one for row, one in zip(row_of_window, bases, strict=True)])
    elif len(pieces) > len(rows):
        batch["sources"], batch["answers"] = np.arange(len(pieces)), row_of_window
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _stacked(targets: Sequence[NDArray]) -> NDArray:
    """Targets as one array, filled up with `IGNORED` where they differ in length."""
    if targets[0].ndim == 0 or len({len(target) for target in targets}) == 1:
        return np.stack(targets)
    stacked = np.full((len(targets), max(map(len, targets))), IGNORED, dtype=targets[0].dtype)
    for row, target in zip(stacked, targets, strict=True):
        row[: len(target)] = target
    return stacked


def answers_of(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The head's answers to a batch of `collate`: (B, L), or (B, bases, L); each a mean of logits.

    `logits` are (V, L) of a sequence head or (V, W, L) of a token head. A base that no token speaks for gets zeros.
    """
    if "sources" not in batch:
        return logits
    flat, answers, shape = logits.float().flatten(0, -2), batch["answers"], batch["labels"].shape
    num_answers = shape.numel() if logits.dim() == 3 else shape[0]
    sums = flat.new_zeros(num_answers, flat.shape[-1]).index_add(0, answers, flat[batch["sources"]])
    counts = torch.bincount(answers, minlength=num_answers).clamp(min=1)
    means = sums / counts[:, None]
    return means.view(*shape, -1) if logits.dim() == 3 else means
