"""Where a run begins: the last complete checkpoint, checked against what is asked for now, or step 0."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.errors import CheckpointError
from dnabert_rm.train.checkpoint import CONFIG_NAME, complete_steps, read_state, step_folder
from dnabert_rm.train.distributed import Ranks, from_first_rank
from dnabert_rm.train.inputs import make_plan
from dnabert_rm.train.state import TrainState

FREE_TO_CHANGE = {
    "data.path", "data.num_workers", "data.prefetch", "data.on_bad_shard", "data.allow_pipe", "data.cache_dir",
    "data.cache_gb", "model.attention", "model.activation_checkpointing", "model.compile",
    "model.build", "model.init_from", "train.output", "train.stop_after",
    "train.micro_batch", "train.global_batch", "train.save_every", "train.keep_last", "train.log_every",
    "train.ds_config", "train.offload_dir", "train.resume", "train.allow_changes", "train.threads_per_rank",
}  # fmt: skip
"""Fields that a resume may change without a word; the data are held by their fingerprint instead of their path."""


def first_state(config: RunConfig, dataset: WindowDataset, ranks: Ranks) -> tuple[TrainState, Path | None]:
    """The state to begin with and the checkpoint that it comes from, if any; on all ranks together.

    `CheckpointError` where the run folder's last checkpoint does not fit this configuration or these data.
    """
    train, run = config.train, Path(config.train.output)
    steps = from_first_rank(complete_steps(run) if ranks.is_first else None)
    if not steps:
        return TrainState(0, make_plan(config), dataset.fingerprint, train.seed), None
    if train.resume == "never":
        raise CheckpointError(f"{run}: has checkpoints, and --resume is never; name another --output")
    folder = step_folder(run, steps[-1])
    state = read_state(folder)
    if not train.allow_changes:
        refuse_changes(folder, state, config, dataset.fingerprint)
    plan = state.plan.changed(state.step, train.global_batch)
    return dataclasses.replace(state, plan=plan, fingerprint=dataset.fingerprint), folder


def refuse_changes(folder: Path, state: TrainState, config: RunConfig, fingerprint: str) -> None:
    """`CheckpointError` where going on from the checkpoint in `folder` would silently train something else."""
    override = "put it back, name another --output, or accept the change with --allow-changes"
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on other data (fingerprint {state.fingerprint[:12]}, now "
            f"{fingerprint[:12]}); samples would repeat or be lost: {override}"
        )
    stored = resolve(tomllib.loads((folder / CONFIG_NAME).read_text())).to_dict()
    # With dropped remainders the length of an epoch hangs on the batch: another one would move every sample.
    held = {"train.global_batch"} if config.data.remainder == "drop" else set()
    changed = [
        f"{section}.{name} was {stored[section][name]} and is {value}"
        for section, values in config.to_dict().items()
        for name, value in values.items()
        if f"{section}.{name}" not in FREE_TO_CHANGE - held and stored[section][name] != value
    ]
    if changed:
        raise CheckpointError(f"{folder}: {'; '.join(changed)}: {override}")
