"""Batched forward passes over sequences of different lengths.

Shapes: B rows per batch, W tokens per padded row, special tokens included.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnabert_rm.tokenizer import DnaTokenizer
from dnabert_rm.tokenizer.windows import has_known_kmer, pad_rows
from dnabert_rm.utils.errors import CheckpointError

Item = TypeVar("Item")
Forward = Callable[[Tensor, Tensor | None], Tensor]
"""Map `input_ids` (B, W) int64 and `attention_mask` (B, W) to outputs (B, …). Without padding, the mask is None."""


@dataclass(frozen=True)
class BatchRunner:
    """Runner that tokenizes sequences and batches rows of similar length for forward passes."""

    tokenizer: DnaTokenizer
    device: torch.device
    precision: str
    """fp32, or bf16 to run under autocast."""
    batch_size: int
    name: str = "the model"
    """The model in error messages."""

    def tokenize(self, sequences: Sequence[bytes]) -> list[NDArray[np.int32] | None]:
        """Return each sequence's token ids with `[CLS]` and `[SEP]`.

        A sequence without a known k-mer gives None. Such a sequence is shorter than one k-mer, or has an ambiguous base
        in every k-mer.
        """
        tokenizer = self.tokenizer
        return [
            np.concatenate(([tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]), dtype=np.int32)
            if has_known_kmer(ids)
            else None
            for ids in tokenizer.token_ids([sequence.decode("ascii") for sequence in sequences])
        ]

    def run(
        self, rows: Sequence[NDArray | None], forward: Forward, select: Callable[[NDArray, int], NDArray]
    ) -> list[NDArray | None]:
        """Run `forward` in batches and return one result per row of token ids, in the order of `rows`.

        A row's result is `select(output, num_kmers)`. `output` is the row's float32 output, padding included.
        `num_kmers` is the row's number of tokens without special tokens. A row that is None has the result None.
        Rows of similar length share a batch, to keep padding small.

        Raises `CheckpointError` if a result is NaN or infinite.
        """
        known = [i for i, row in enumerate(rows) if row is not None]
        known.sort(key=lambda i: len(rows[i]), reverse=True)  # type: ignore[arg-type]
        results: list[NDArray | None] = [None] * len(rows)
        for start in range(0, len(known), self.batch_size):
            indices = known[start : start + self.batch_size]
            outputs = self._forward([rows[i] for i in indices], forward)  # type: ignore[misc]
            for i, output in zip(indices, outputs, strict=True):
                result = select(output, len(rows[i]) - 2)  # type: ignore[arg-type]
                check_finite(result, self.name)
                results[i] = result
        trim_heap()
        return results

    def _forward(self, rows: list[NDArray], forward: Forward) -> NDArray[np.float32]:
        ids, mask = pad_rows(rows, max(map(len, rows)))
        # Without a mask, attention can use faster kernels.
        attention_mask = None if mask.all() else torch.from_numpy(mask).to(self.device)
        with torch.inference_mode(), self.autocast():
            return forward(torch.from_numpy(ids).to(self.device), attention_mask).float().cpu().numpy()

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def check_finite(outputs: NDArray, model: str = "the model") -> None:
    """Raise `CheckpointError` if an output of the model, which `model` names, is NaN or infinite."""
    if not np.isfinite(outputs).all():
        raise CheckpointError(
            f"{model}: its outputs are NaN or infinite, as after training with a too high learning rate; pass another"
            " model"
        )


def trim_heap() -> None:
    """Return freed memory to the operating system, because batches of many shapes fragment and enlarge glibc's heap."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
