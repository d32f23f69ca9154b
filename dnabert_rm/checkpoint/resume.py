"""Where a run begins: the last usable checkpoint, checked against what is asked for now, or step 0."""

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
from dnabert_rm.data.batching import make_plan
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.collectives import on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import CheckpointError


def first_state(config: RunConfig, dataset: WindowDataset, ranks: Ranks) -> tuple[TrainState, Path | None]:
    """The state to begin with and the checkpoint that it comes from, if any; on all ranks together.

    `CheckpointError` where no checkpoint is usable, or the one to begin from does not fit this configuration or data.
    """
    train = config.train
    folder = find_start(train.resume, Path(train.output), ranks)
    if folder is None:
        return TrainState(0, make_plan(config), dataset.fingerprint, train.seed), None
    state = on_first_rank(lambda: _fitting_state(folder, config, dataset.fingerprint), ranks)
    plan = state.plan.changed(state.step, train.global_batch)
    return dataclasses.replace(state, plan=plan, fingerprint=dataset.fingerprint), folder


def find_start(resume: str, run: Path, ranks: Ranks) -> Path | None:
    """The checkpoint to begin from, every file of it checked, or None; on all ranks together.

    Damaged ones are passed over, in favour of the one before, with a line on standard error.
    """
    damages: list[tuple[Path, str]] = []
    # A node may have mounted the run folder in another place than rank 0's.
    for found in on_first_rank(lambda: [_within(run, path) for path in candidates(resume, run)], ranks):
        folder = run / found
        damage = find_damage_on_all_ranks(folder, ranks)
        if damage is None:
            on_first_rank(lambda chosen=folder: _choose(chosen, damages, resume, run), ranks)  # type: ignore[misc]
            return folder
        damages.append((folder, damage))
    if damages:
        others = f", and so are {len(damages) - 1} others" if len(damages) > 1 else ""
        raise CheckpointError(
            f"{damages[0][1]}{others}; no checkpoint is left to go on from: put a copy of one back, name one with "
            "--resume, or begin anew with another --output"
        )
    return None


def _within(run: Path, path: Path) -> Path:
    """A path in the run folder as seen from there, any other in full: `run / …` then gives it on every node."""
    return path.relative_to(run) if path.is_relative_to(run) else path.absolute()


def _choose(folder: Path, damages: list[tuple[Path, str]], resume: str, run: Path) -> None:
    """Tell of what was passed over; `CheckpointError` where going on would mix two runs in one folder."""
    step = read_state(folder).step
    own = folder.resolve().parent == step_folder(run, 0).resolve().parent
    passed_over = {damaged.name for damaged, _ in damages} if own else set()
    later = [found for found in saved_steps(run) if (found > step or not own)]
    later = [found for found in later if step_folder(run, found).name not in passed_over]
    if later:
        raise CheckpointError(
            f"{run}: has checkpoints of its own (step {later[-1]}), which --resume {resume} would overwrite; go on "
            "from them with --resume auto, delete them, or name another --output"
        )
    if damages:
        reasons = "; ".join(reason for _, reason in damages)
        print(f"{reasons}; going on from step {step}", file=sys.stderr, flush=True)
    if own:
        for damaged, _ in damages:
            rename_damaged(damaged)
        write_latest(folder)


def _fitting_state(folder: Path, config: RunConfig, fingerprint: str) -> TrainState:
    """The state in a checkpoint, where going on from it is what the configuration asks for."""
    state = read_state(folder)
    if (step := step_of(folder)) not in (None, state.step):
        raise CheckpointError(f"{folder}: holds the state of step {state.step}, not {step}; give it its own name back")
    if not config.train.allow_changes:
        check_compatible(folder, state, config, fingerprint)
    return state
