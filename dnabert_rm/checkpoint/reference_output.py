"""Reference output: the training model's logits for a fixed input, saved in a checkpoint to check exports against."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import CLS_ID, MASK_ID, NUM_SPECIAL, SEP_ID
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import CheckpointError

NUM_WINDOWS = 2
MAX_TOKENS = 64
NUM_POSITIONS = 8


@dataclass(frozen=True)
class ReferenceOutput:
    """Fixed `input_ids` (2, L), `positions` (8,) in the flattened input, and the `logits` (8, V) at those positions."""

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    precision: str
    device: str


def reference_input(vocab_size: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fixed input ids (2, L) and the positions (8,) to predict. The ids are random k-mers, some masked."""
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
    """Return the output of DeepSpeed's `engine` for the fixed input, without dropout.

    Every rank must call this, because ZeRO-3 gathers the weights.
    """
    input_ids, positions = reference_input(vocab_size, window)
    engine.eval()
    with torch.no_grad():
        logits = engine(torch.from_numpy(input_ids).to(device), torch.from_numpy(positions).to(device))
    engine.train()
    return ReferenceOutput(input_ids, positions, logits.float().cpu().numpy(), precision, device.type)


def save_reference_output(path: Path, output: ReferenceOutput) -> None:
    """Write a reference output as .npz, without pickle."""
    np.savez(path, **output.__dict__)


def load_reference_output(path: Path) -> ReferenceOutput:
    """Read a reference output without pickle. Raises `CheckpointError` if it is missing, damaged or malformed."""
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
    """Raise ValueError unless arrays from a file have the types, shapes and ranges of a reference output."""
    for array, kind, dimensions in ((output.input_ids, "i", 2), (output.positions, "i", 1), (output.logits, "f", 2)):
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(f"unexpected array of {array.dtype} with {array.ndim} dimensions")
    if len(output.logits) != len(output.positions) or not len(output.positions) or not output.input_ids.size:
        raise ValueError(f"{len(output.logits)} rows of logits for {len(output.positions)} positions")
    if output.positions.min() < 0 or output.positions.max() >= output.input_ids.size:
        raise ValueError("positions outside the input")
    if output.input_ids.min() < 0 or output.input_ids.max() >= output.logits.shape[1]:
        raise ValueError("ids outside the vocabulary")
    if output.precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"unknown precision {output.precision!r}")
