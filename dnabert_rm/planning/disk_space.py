"""Will the checkpoints fit? Size by arithmetic, room by asking the disk of the run folder. Torch-free."""

from __future__ import annotations

import shutil
from pathlib import Path

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import load_ds_config, zero_stage
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import writable_parent

OPTIMIZER_BYTES = 12
"""Of a parameter in a checkpoint: AdamW's two moments and the master weight, fp32 each."""


def checkpoint_bytes(config: RunConfig, vocab_size: int) -> int:
    """Bytes of one checkpoint, small files left out; ZeRO-3 stores no weights besides the optimizer's."""
    weight = 2 if config.train.precision in ("bf16", "fp16") else 4
    stage = zero_stage(load_ds_config(config.train.ds_config)[1])
    return num_parameters(model_shape(config.model, vocab_size)) * (OPTIMIZER_BYTES + (0 if stage == 3 else weight))


def check_disk(config: RunConfig, vocab_size: int) -> str:
    """A line on the room that checkpoints take; `ConfigError` where the run folder can't be written or is too small.

    Room is counted for the checkpoints that are kept and one that is being written; what the run's checkpoints take
    already is counted as theirs. Writes nothing.
    """
    run = Path(config.train.output)
    place = writable_parent(run)
    one, number = checkpoint_bytes(config, vocab_size), num_checkpoints(config)
    there = sum(path.stat().st_size for path in run.glob("checkpoints/*/*") if path.is_file())
    free = shutil.disk_usage(place).free
    if one * number > free + there:
        raise ConfigError(
            f"train.output: {number} checkpoints of {_gb(one)} need {_gb(one * number)}, and the disk of {run} has "
            f"{_gb(free)} free; make room, lower --train.keep_last, or name another --output"
        )
    return f"checkpoints: {number} x {_gb(one)} on a disk with {_gb(free)} free"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def num_checkpoints(config: RunConfig) -> int:
    """The most checkpoints that lie on the disk at once, the one that is being written included."""
    train = config.train
    steps = min(train.steps, train.stop_after or train.steps)
    saves = -(-steps // train.save_every)
    kept_for_ever = steps // train.keep_every if train.keep_every else 0
    return min(saves, kept_for_ever + train.keep_last + 1) if train.keep_last else saves
