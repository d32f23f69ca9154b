"""What can't be right in a configuration, whatever the data: one line a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dnabert_rm.config.fields import ARCHITECTURES, ATTENTIONS, BUILDS, LR_SCHEDULES, PRECISIONS, RunConfig

CHOICES = {
    "model.architecture": ARCHITECTURES,
    "model.attention": ATTENTIONS,
    "model.build": BUILDS,
    "data.strand": ("forward", "random", "both"),
    "data.lengths": ("full", "random"),
    "data.remainder": ("wrap", "drop"),
    "data.on_bad_shard": ("fail", "skip"),
    "optim.schedule": LR_SCHEDULES,
    "train.precision": PRECISIONS,
}
"""Fields that take one of a few words; the layers below check those of `[masking]`."""
AT_LEAST = {
    "model.num_layers": 1, "model.num_heads": 1, "data.window": 3, "data.num_streams": 1, "data.block_windows": 1,
    "data.num_workers": 0, "data.prefetch": 1, "train.steps": 1, "train.global_batch": 1, "train.micro_batch": 0,
    "train.save_every": 1, "train.log_every": 1, "train.keep_last": 0, "train.stop_after": 0, "train.seed": 0,
    "train.keep_every": 0, "validation.every": 0, "validation.windows": 1,
    "train.batch_start": 0, "train.batch_increment": 0, "train.batch_warmup_steps": 0,
}  # fmt: skip
"""Least values of whole numbers."""


def mistakes(config: RunConfig) -> Iterator[str]:
    """Lines for values that can't be right together or alone."""
    for name, allowed in CHOICES.items():
        if (value := _value(config, name)) not in allowed:
            yield f"{name}: {value!r} must be one of {', '.join(allowed)}"
    for name, least in AT_LEAST.items():
        if (value := _value(config, name)) < least:
            yield f"{name}: {value} must be at least {least}"
    model, data, optim, train = config.model, config.data, config.optim, config.train
    if model.num_heads > 0 and model.hidden_size % model.num_heads:
        yield f"model.hidden_size: {model.hidden_size} must be a multiple of model.num_heads ({model.num_heads})"
    if data.window > model.max_positions:
        yield f"data.window: {data.window} is more than model.max_positions ({model.max_positions}); change one of them"
    if not train.start_timeout_seconds > 0:
        yield f"train.start_timeout_seconds: {train.start_timeout_seconds} must be above 0"
    if not optim.lr > 0:
        yield f"optim.lr: {optim.lr} must be above 0"
    if not 0 < optim.decay_share <= 1:
        yield f"optim.decay_share: {optim.decay_share} must be above 0 and at most 1"
    if train.keep_every > 0 and train.keep_every % max(1, train.save_every):
        yield f"train.keep_every: {train.keep_every} must be a multiple of train.save_every ({train.save_every})"
    if config.validation.spans and min(config.validation.spans) < 1:
        yield f"validation.spans: {list(config.validation.spans)} must be at least 1"
    if not train.resume:
        yield "train.resume: must be auto, never or a folder"
    if train.batch_start and data.remainder == "drop":
        yield "data.remainder: drop and a batch-size warm-up (train.batch_start) exclude each other; change one of them"
    if train.hang_timeout_seconds < 0:
        yield f"train.hang_timeout_seconds: {train.hang_timeout_seconds} must be at least 0"
    if not data.path:
        yield "data.path: no prepared folder; give --data DIR (made by `python -m data_prep build`)"
    if not train.output:
        yield "train.output: no run folder; give --output DIR"


def _value(config: RunConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
