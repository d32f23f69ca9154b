"""Reject configuration changes that would alter a resumed run. Torch-free."""

from __future__ import annotations

import tomllib
from pathlib import Path

from dnabert_rm.checkpoint.run_folder import CONFIG_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig, free_on_resume, resolve
from dnabert_rm.utils.errors import CheckpointError, ConfigError


def stored_config(folder: Path) -> RunConfig:
    """Read a checkpoint's training configuration. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return resolve(tomllib.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: cannot be read ({error}); use another checkpoint") from None


def check_compatible(folder: Path, state: TrainState, config: RunConfig, fingerprint: str) -> None:
    """Raise `CheckpointError` if resuming from `folder` with this configuration and data would change the results.

    Only fields in `free_on_resume()` may differ. `fingerprint` is the fingerprint of this run's data.
    """
    override = "undo the change, choose another --output, or accept the change with --allow-changes"
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on other data (fingerprint {state.fingerprint[:12]}, now "
            f"{fingerprint[:12]}), so samples would be repeated or skipped; {override}"
        )
    stored = stored_config(folder).to_dict()
    current = config.to_dict()
    if current["train"]["precision"] == "auto":  # before the run has selected its device
        current["train"]["precision"] = stored["train"]["precision"]
    # If remainders are dropped, an epoch's length depends on the batch size. Another size would shift every sample.
    fixed = {"train.global_batch"} if config.data.remainder == "drop" else set()
    may_differ = free_on_resume() - fixed
    changed = [
        f"{section}.{name} was {stored[section][name]} and is {value}"
        for section, values in current.items()
        for name, value in values.items()
        if f"{section}.{name}" not in may_differ and stored[section][name] != value
    ]
    if changed:
        raise CheckpointError(f"{folder}: {'; '.join(changed)}; {override}")
