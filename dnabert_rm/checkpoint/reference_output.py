"""Reference output: the training model's logits for a fixed input, saved in a checkpoint for checking exports."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import CLS_ID, MASK_ID, NUM_SPECIAL, SEP_ID
from dnabert_rm.model.kernels import uncompiled_layers
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import CheckpointError

NUM_WINDOWS = 2
MAX_TOKENS = 64
NUM_POSITIONS = 8


@dataclass(frozen=True)
class ReferenceOutput:
    """Model output for a fixed input of 2 windows with L tokens each. V is the vocabulary size.

    `input_ids` has shape (2, L). `positions` (8,) contains indices into the flattened `input_ids`. `logits` (8, V)
    contains the model's output at these positions.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    precision: str
    device: str


def reference_input(vocab_size: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fixed input ids (2, L) int64 and the positions (8,) int64 to predict.

    The ids are random tokens from a fixed seed, and some of them are masked. L is `window`, but at most
    `MAX_TOKENS`. Positions are indices into the flattened ids.
    """
    length = min(window, MAX_TOKENS)
    bits = random.fold(random.key(0, "probe"), np.arange(NUM_WINDOWS * length))
    input_ids = (NUM_SPECIAL + random.below(bits, vocab_size - NUM_SPECIAL)).reshape(NUM_WINDOWS, length)
    input_ids[:, 0], input_ids[:, -1] = CLS_ID, SEP_ID
    positions = np.linspace(0, NUM_WINDOWS * length - 1, NUM_POSITIONS).astype(np.int64)
    input_ids.reshape(-1)[positions[1:-1:2]] = MASK_ID
    return input_ids, positions


def compute_reference_output(
    engine: Any, vocab_size: int, window: int, precision: str, device: torch.device
) -> ReferenceOutput:
    """Return the reference output that DeepSpeed's `engine` computes for the fixed input, without dropout.

    Every rank must call this, because ZeRO-3 gathers the weights from all ranks.
    """
    input_ids, positions = reference_input(vocab_size, window)
    engine.eval()
    with torch.no_grad(), uncompiled_layers(engine.module):
        logits = engine(torch.from_numpy(input_ids).to(device), torch.from_numpy(positions).to(device))
    engine.train()
    return ReferenceOutput(input_ids, positions, logits.float().cpu().numpy(), precision, device.type)


def save_reference_output(path: Path, output: ReferenceOutput) -> None:
    """Write a reference output as an .npz file."""
    np.savez(path, **output.__dict__)


def load_reference_output(path: Path) -> ReferenceOutput:
    """Read a reference output from an .npz file. Raises `CheckpointError` if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            output = ReferenceOutput(
                stored["input_ids"],
                stored["positions"],
                stored["logits"],
                str(stored["precision"]),
                str(stored["device"]),
            )
        _check(output)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use an earlier checkpoint") from None
    return output


def _check(output: ReferenceOutput) -> None:
    """Raise ValueError unless the types, shapes and value ranges of the loaded arrays are valid."""
    for array, kind, dimensions in ((output.input_ids, "i", 2), (output.positions, "i", 1), (output.logits, "f", 2)):
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(
                f"expected an array with {dimensions} dimensions and dtype kind {kind!r} (i: integer, f: float), found "
                f"an array with {array.ndim} dimensions and dtype {array.dtype}"
            )
    if len(output.logits) != len(output.positions) or not len(output.positions) or not output.input_ids.size:
        raise ValueError(
            f"expected one row of logits per position, found {len(output.logits)} rows for {len(output.positions)} "
            "positions"
        )
    if output.positions.min() < 0 or output.positions.max() >= output.input_ids.size:
        raise ValueError(f"a position is not between 0 and {output.input_ids.size - 1}, the last index of the input")
    if output.input_ids.min() < 0 or output.input_ids.max() >= output.logits.shape[1]:
        raise ValueError(
            f"an input id is not between 0 and {output.logits.shape[1] - 1}, the last id of the vocabulary"
        )
    if output.precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"unknown precision {output.precision!r}, expected fp32, bf16 or fp16")
