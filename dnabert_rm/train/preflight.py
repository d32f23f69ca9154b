"""What can be checked before any rank starts: configuration, data, batch arithmetic. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dnabert_rm.config import RunConfig
from dnabert_rm.errors import ConfigError
from dnabert_rm.train.inputs import make_dataset, make_mask_schedule

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def check_run(config: RunConfig) -> list[str]:
    """Check what needs no rank; returns lines that describe the run, or raises `UserError`."""
    dataset = make_dataset(config)
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    load_ds_config(config.train.ds_config)
    epochs = config.train.steps * config.train.global_batch / dataset.num_windows
    phases = ", ".join(
        f"{end} (spans to {max(spans)})" for end, spans in zip(schedule.phase_ends, schedule.spans, strict=True)
    )
    return [
        f"data: {dataset.num_windows} windows of {config.data.window} tokens an epoch, {epochs:.2f} epochs",
        f"phases end at steps {phases}",
        f"fingerprint: {dataset.fingerprint}",
    ]


def find_ds_config(name: str) -> Path:
    """A file, or the name of one in `ds_configs/` of the checkout; `ConfigError` lists what is there."""
    for path in (Path(name), DS_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
    raise ConfigError(f"--ds-config {name}: no such file; give a path or one of {shipped}")


def load_ds_config(name: str) -> tuple[Path, dict[str, Any]]:
    """A DeepSpeed configuration and where it lies; `ConfigError` where it is missing or not JSON."""
    path = find_ds_config(name)
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ds-config {path}: {error}; mend the file") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--ds-config {path}: must hold one JSON object; mend the file")
    return path, settings
