"""Choose the checkpoint that a run resumes: the newest undamaged one. Without checkpoints the run starts at step 0."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dnabert_rm.checkpoint.compatibility import (
    Change,
    check_compatible,
    describe_changes,
    read_metadata,
    without_init_from,
)
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


@dataclass(frozen=True)
class Start:
    """Starting point of a run: the training state, the checkpoint if any, and changes since the checkpoint."""

    state: TrainState
    checkpoint: Path | None = None
    changes: list[Change] = field(default_factory=list)
    init_from: str = ""
    """Folder that the initial weights of the run came from, before its first step."""

    def recorded_config(self, config: RunConfig) -> RunConfig:
        """Return `config` with `model.init_from` set to the folder of the run's initial weights.

        A resumed run takes this folder from its checkpoint, and ignores `--init-from`.
        """
        return dataclasses.replace(config, model=dataclasses.replace(config.model, init_from=self.init_from))

    def sized_config(self, config: RunConfig) -> RunConfig:
        """Return `config` for building the model.

        A resumed run has its sizes in `[model]`. It has no `--init-from`, as that folder may be gone or replaced.
        """
        return without_init_from(config) if self.checkpoint else config

    def print_changes(self, config: RunConfig) -> None:
        """Print the changes since the checkpoint, if any. If `--init-from` has no effect, print a notice."""
        if self.changes:
            print(describe_changes(self.state.step, self.changes), file=sys.stderr, flush=True)
        if config.model.init_from not in ("", self.init_from):
            print(
                f"--init-from {config.model.init_from}: has no effect, because the run resumes {self.checkpoint}",
                file=sys.stderr,
                flush=True,
            )


def find_start(config: RunConfig, dataset: WindowDataset, ranks: Ranks) -> Start:
    """Return the starting point of a new or resumed run. All ranks must call this.

    A new run starts at step 0 and has no checkpoint. Raises `CheckpointError` if all checkpoints are damaged, or
    if the newest undamaged checkpoint does not fit the configuration or the data.
    """
    train = config.train
    folder = find_checkpoint(train.resume, Path(train.output), ranks)
    if folder is None:
        state = TrainState(0, make_batch_plan(config), dataset.fingerprint, train.seed)
        return Start(state, init_from=config.model.init_from)
    start = on_first_rank(lambda: _resumed(folder, config, dataset), ranks)
    if ranks.is_first:
        start.print_changes(config)
    # Another node may have mounted the run folder at a different path than rank 0.
    return dataclasses.replace(start, checkpoint=folder)


def find_checkpoint(resume: str, run: Path, ranks: Ranks) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there are no checkpoints. All ranks must call this.

    Damaged checkpoints are skipped, and reported in one line on standard error. Raises `CheckpointError` if all
    checkpoints are damaged.
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
            f"{damages[0][1]}{others}; no usable checkpoint is left; restore a copy, choose another checkpoint with "
            "--resume, or start a new run with another --output"
        )
    return None


def _relative_to_run(run: Path, path: Path) -> Path:
    """Return `path` relative to `run` if it is inside `run`, otherwise as an absolute path.

    Nodes may mount the run folder at different paths, so each node joins the result with its own `run`.
    """
    return path.relative_to(run) if path.is_relative_to(run) else path.absolute()


def _prepare_resume(folder: Path, damages: list[tuple[Path, str]], resume: str, run: Path) -> None:
    """Prepare `run` for resuming the checkpoint `folder`, and report the damaged checkpoints that were skipped.

    If `folder` is a checkpoint of `run`, the damaged checkpoints are renamed, and the file
    `checkpoints/latest` then names `folder`.

    Raises `CheckpointError` if resuming from `folder` would overwrite other checkpoints of `run`.
    """
    step = read_state(folder).step
    is_in_run = folder.resolve().parent == step_folder(run, 0).resolve().parent
    skipped = {damaged.name for damaged, _ in damages} if is_in_run else set()
    later = [found for found in saved_steps(run) if (found > step or not is_in_run)]
    later = [found for found in later if step_folder(run, found).name not in skipped]
    if later:
        raise CheckpointError(
            f"{run}: already has checkpoints (step {later[-1]}), which --resume {resume} would overwrite; pass "
            "--resume auto, delete these checkpoints, or choose another --output"
        )
    if damages:
        reasons = "; ".join(reason for _, reason in damages)
        print(f"{reasons}; resuming from step {step}", file=sys.stderr, flush=True)
    if is_in_run:
        for damaged, _ in damages:
            rename_damaged(damaged)
        write_latest(folder)


def _resumed(folder: Path, config: RunConfig, dataset: WindowDataset) -> Start:
    """Return the starting point of a run that resumes the checkpoint in `folder`.

    Raises `CheckpointError` if the checkpoint does not fit the run, or if the step in `state.json` differs from the
    step in the folder's name.
    """
    metadata = read_metadata(folder)
    state = metadata.state
    if (step := step_of(folder)) not in (None, state.step):
        raise CheckpointError(
            f"{folder}: contains the state of step {state.step}, not of step {step}; restore the folder's original name"
        )
    changes = check_compatible(metadata, config, dataset.tokenizer, dataset.fingerprint)
    plan = state.plan.changed(state.step, config.train.global_batch)
    state = TrainState(state.step, plan, dataset.fingerprint, config.train.seed)
    return Start(state, folder, changes, metadata.config.model.init_from)
