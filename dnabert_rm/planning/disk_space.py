"""Check that a run's checkpoints fit on the disk. Does not import torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import load_ds_config, zero_stage
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import writable_parent

OPTIMIZER_BYTES = 12
"""Bytes per parameter in a checkpoint: AdamW's two moments and the master weight, each in fp32. At ZeRO stage 0, which
trains in fp32, the master weight is the model's weight."""


def checkpoint_bytes(config: RunConfig, vocab_size: int) -> int:
    """Return the bytes of one checkpoint, without small files.

    The sum covers the fp32 master weights, AdamW's moments and, at ZeRO stages 1 and 2, the model's weights.
    """
    weight = 2 if config.train.precision in ("bf16", "fp16") else 4
    if zero_stage(load_ds_config(config.train.ds_config)[1]) in (0, 3):
        weight = 0
    return num_parameters(model_shape(config.model, vocab_size)) * (OPTIMIZER_BYTES + weight)


def check_disk(config: RunConfig, vocab_size: int) -> str:
    """Check that a run's checkpoints fit on the disk, and return one line with their size and the free disk space.

    The disk must have space for all checkpoints that are kept, plus one being written. Space used by the run's existing
    checkpoints counts as free, except damaged ones, which are never deleted. No file is written. Raises `ConfigError`
    if the space is too small or the run folder is not writable.
    """
    run = Path(config.train.output)
    existing_parent = writable_parent(run)
    one, number = checkpoint_bytes(config, vocab_size), num_checkpoints(config)
    folders = [folder for folder in run.glob("checkpoints/*") if folder.suffix != ".damaged"]
    used = sum(path.stat().st_size for folder in folders for path in folder.glob("*") if path.is_file())
    free = shutil.disk_usage(existing_parent).free
    if one * number > free + used:
        raise ConfigError(
            f"train.output: {number} checkpoints of {_gb(one)} need {_gb(one * number)}, but the disk of {run} has "
            f"{_gb(free)} free; free disk space, lower --train.keep_last, or choose another --output"
        )
    return f"checkpoints: {number} x {_gb(one)} on a disk with {_gb(free)} free"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def num_checkpoints(config: RunConfig) -> int:
    """Return the largest number of checkpoints on the disk at the same time, including the one being written."""
    train = config.train
    steps = min(train.steps, train.stop_after or train.steps)
    saves = -(-steps // train.save_every)
    kept_forever = steps // train.keep_every if train.keep_every else 0
    return min(saves, kept_forever + train.keep_last + 1) if train.keep_last else saves
