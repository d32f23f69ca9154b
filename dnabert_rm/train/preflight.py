"""What can be checked before any rank starts: configuration, data, batch arithmetic. Torch-free."""

from __future__ import annotations

import importlib.util

from dnabert_rm.config import RunConfig
from dnabert_rm.errors import ConfigError
from dnabert_rm.model.init_from import check_vocabulary
from dnabert_rm.train.ds_config import ds_settings
from dnabert_rm.train.inputs import make_dataset, make_mask_schedule, make_plan


def check_run(config: RunConfig) -> list[str]:
    """Check what needs no rank; returns lines that describe the run, or raises `UserError`."""
    dataset = make_dataset(config)
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    ds_settings(config)
    make_plan(config)
    if config.model.init_from:
        check_vocabulary(config.model.init_from, dataset.tokenizer.k, dataset.tokenizer.vocab_size)
    if config.model.attention == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        raise ConfigError("model.attention: flash_attention_2 needs the package flash-attn; install it or take sdpa")
    epochs = config.train.steps * config.train.global_batch / dataset.num_windows
    phases = ", ".join(
        f"{end} (spans to {max(spans)})" for end, spans in zip(schedule.phase_ends, schedule.spans, strict=True)
    )
    return [
        f"data: {dataset.num_windows} windows of {config.data.window} tokens an epoch, {epochs:.2f} epochs",
        f"phases end at steps {phases}",
        f"fingerprint: {dataset.fingerprint}",
    ]
