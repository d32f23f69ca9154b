"""What of a configuration differs from that of a checkpoint, and may not. Torch-free."""

from __future__ import annotations

import tomllib
from pathlib import Path

from dnabert_rm.checkpoint.run_folder import CONFIG_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import FREE_TO_CHANGE, RunConfig, resolve
from dnabert_rm.utils.errors import CheckpointError, ConfigError


def stored_config(folder: Path) -> RunConfig:
    """The configuration that a checkpoint was trained with."""
    try:
        return resolve(tomllib.loads((folder / CONFIG_NAME).read_text()))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: cannot be read ({error}); use another checkpoint") from None


def check_compatible(folder: Path, state: TrainState, config: RunConfig, fingerprint: str) -> None:
    """`CheckpointError` where going on from the checkpoint in `folder` would silently train something else."""
    override = "put it back, name another --output, or accept the change with --allow-changes"
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on other data (fingerprint {state.fingerprint[:12]}, now "
            f"{fingerprint[:12]}); samples would repeat or be lost: {override}"
        )
    stored = stored_config(folder).to_dict()
    asked = config.to_dict()
    if asked["train"]["precision"] == "auto":  # before the run knows its device
        asked["train"]["precision"] = stored["train"]["precision"]
    # With dropped remainders the length of an epoch hangs on the batch: another one would move every sample.
    held = {"train.global_batch"} if config.data.remainder == "drop" else set()
    changed = [
        f"{section}.{name} was {stored[section][name]} and is {value}"
        for section, values in asked.items()
        for name, value in values.items()
        if f"{section}.{name}" not in FREE_TO_CHANGE - held and stored[section][name] != value
    ]
    if changed:
        raise CheckpointError(f"{folder}: {'; '.join(changed)}: {override}")
