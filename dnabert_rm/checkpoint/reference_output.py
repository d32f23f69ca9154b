"""What the training model answers to a fixed input, kept in a checkpoint so that an export can be checked."""

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

NUM_WINDOWS, MAX_TOKENS, NUM_POSITIONS = 2, 64, 8


@dataclass(frozen=True)
class ReferenceOutput:
    """`input_ids` (2, L) int64, `positions` (8,) int64 in the flattened input, `logits` (8, V) float32."""

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    precision: str
    device: str


def reference_input(vocab_size: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The fixed input of a vocabulary and window length: random k-mers, some masked, and the positions asked."""
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
    """Ask the training model, without dropout; every rank must call it (under ZeRO-3 weights are gathered)."""
    input_ids, positions = reference_input(vocab_size, window)
    engine.eval()
    with torch.no_grad():
        logits = engine(torch.from_numpy(input_ids).to(device), torch.from_numpy(positions).to(device))
    engine.train()
    return ReferenceOutput(input_ids, positions, logits.float().cpu().numpy(), precision, device.type)


def save_reference_output(path: Path, probe: ReferenceOutput) -> None:
    """Write a probe as .npz, without pickle."""
    np.savez(path, **probe.__dict__)


def load_reference_output(path: Path) -> ReferenceOutput:
    """Read a probe, without pickle; `CheckpointError` where it is missing, damaged or no probe."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            probe = ReferenceOutput(
                stored["input_ids"],
                stored["positions"],
                stored["logits"],
                str(stored["precision"]),
                str(stored["device"]),
            )
        _check(probe)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use an earlier checkpoint") from None
    return probe


def _check(probe: ReferenceOutput) -> None:
    """ValueError where arrays from a file are not those of a probe."""
    for array, kind, dimensions in ((probe.input_ids, "i", 2), (probe.positions, "i", 1), (probe.logits, "f", 2)):
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(f"an array of {array.dtype} with {array.ndim} dimensions")
    if len(probe.logits) != len(probe.positions) or not len(probe.positions) or not probe.input_ids.size:
        raise ValueError(f"{len(probe.logits)} rows of logits for {len(probe.positions)} positions")
    if probe.positions.min() < 0 or probe.positions.max() >= probe.input_ids.size:
        raise ValueError("positions outside of the input")
    if probe.input_ids.min() < 0 or probe.input_ids.max() >= probe.logits.shape[1]:
        raise ValueError("ids outside of the vocabulary")
    if probe.precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision {probe.precision!r}")
