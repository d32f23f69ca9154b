"""Choose the checkpoint that a run resumes: the newest undamaged one. Without checkpoints the run starts at step 0."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from dnabert_rm.checkpoint.compatibility import check_compatible
from dnabert_rm.checkpoint.load import find_damage_on_all_ranks
from dnabert_rm.checkpoint.run_folder import candidates, read_state, saved_steps, step_folder, step_of
from dnabert_rm.checkpoint.save import rename_damaged, write_latest
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import make_batch_plan
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.collectives import on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import CheckpointError


def first_state(config: RunConfig, dataset: WindowDataset, ranks: Ranks) -> tuple[TrainState, Path | None]:
    """Return the state that the run starts from, and its checkpoint. All ranks must call this.

    A new run starts at step 0, and its checkpoint is None. Raises `CheckpointError` if all checkpoints are damaged, or
    if the newest undamaged one does not fit the configuration or the data.
    """
    train = config.train
    folder = find_start(train.resume, Path(train.output), ranks)
    if folder is None:
        return TrainState(0, make_batch_plan(config), dataset.fingerprint, train.seed), None
    state = on_first_rank(lambda: _compatible_state(folder, config, dataset.fingerprint), ranks)
    plan = state.plan.changed(state.step, train.global_batch)
    return dataclasses.replace(state, plan=plan, fingerprint=dataset.fingerprint), folder


def find_start(resume: str, run: Path, ranks: Ranks) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there are no checkpoints. All ranks must call this.

    Damaged checkpoints are skipped and reported in one line on standard error. If all checkpoints are damaged, raises
    `CheckpointError`.
    """
    damages: list[tuple[Path, str]] = []
    # Another node may have mounted the run folder at a different path than rank 0.
    for found in on_first_rank(lambda: [_relative_to_run(run, path) for path in candidates(resume, run)], ranks):
        folder = run / found
        damage = find_damage_on_all_ranks(folder, ranks)
        if damage is None:
            on_first_rank(lambda chosen=folder: _prepare_resume(chosen, damages, resume, run), ranks)  # type: ignore[misc]
            return folder
        damages.append((folder, damage))
    if damages:
        others = f" ({len(damages) - 1} others are damaged too)" if len(damages) > 1 else ""
        raise CheckpointError(
            f"{damages[0][1]}{others}; no usable checkpoint is left; restore a copy, choose another with --resume, or "
            "start a new run with another --output"
        )
    return None


def _relative_to_run(run: Path, path: Path) -> Path:
    """Return a relative path if `path` is inside `run`, else an absolute path. Then `run / path` fits every node."""
    return path.relative_to(run) if path.is_relative_to(run) else path.absolute()


def _prepare_resume(folder: Path, damages: list[tuple[Path, str]], resume: str, run: Path) -> None:
    """Report and rename the skipped damaged checkpoints, and set `latest` to the chosen checkpoint `folder`.

    Raises `CheckpointError` if resuming from `folder` would overwrite other checkpoints of `run`.
    """
    step = read_state(folder).step
    is_in_run = folder.resolve().parent == step_folder(run, 0).resolve().parent
    skipped = {damaged.name for damaged, _ in damages} if is_in_run else set()
    later = [found for found in saved_steps(run) if (found > step or not is_in_run)]
    later = [found for found in later if step_folder(run, found).name not in skipped]
    if later:
        raise CheckpointError(
            f"{run}: already has checkpoints (step {later[-1]}), which --resume {resume} would overwrite; resume them "
            "with --resume auto, delete them, or choose another --output"
        )
    if damages:
        reasons = "; ".join(reason for _, reason in damages)
        print(f"{reasons}; resuming from step {step}", file=sys.stderr, flush=True)
    if is_in_run:
        for damaged, _ in damages:
            rename_damaged(damaged)
        write_latest(folder)


def _compatible_state(folder: Path, config: RunConfig, fingerprint: str) -> TrainState:
    """Read a checkpoint's state. Raises `CheckpointError` if it does not fit the configuration, data or folder name."""
    state = read_state(folder)
    if (step := step_of(folder)) not in (None, state.step):
        raise CheckpointError(
            f"{folder}: contains the state of step {state.step}, not of step {step}; restore the folder's original name"
        )
    if not config.train.allow_changes:
        check_compatible(folder, state, config, fingerprint)
    return state
