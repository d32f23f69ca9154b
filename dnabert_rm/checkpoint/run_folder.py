"""Run folder: names of its files, steps of its checkpoints, and which checkpoints a run may resume. Torch-free."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dnabert_rm.checkpoint.checksums import COMPLETE_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.utils.errors import CheckpointError

FOLDER_NAME = "checkpoints"
LATEST_NAME = "latest"
STATE_NAME = "state.json"
CONFIG_NAME = "config.toml"
METRICS_NAME = "metrics.jsonl"
ENVIRONMENT_NAME = "environment.json"
TOKENIZER_NAME = "tokenizer.json"
REFERENCE_OUTPUT_NAME = "probe.npz"
DATA_NAME = "data.json"
CHANGES_NAME = "changes.jsonl"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint that is saved after `step` steps."""
    return run / FOLDER_NAME / f"step_{step:08d}"


def temporary_folder(path: Path) -> Path:
    """Return the hidden path for the folder `path`, which is used while the folder is being written or deleted.

    If the run is killed meanwhile, the next start of the run deletes the hidden folder (`remove_leftovers`).
    """
    return path.with_name(f".{path.name}.tmp")


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint folder's name, or None if the name does not have the form "step_…"."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def saved_steps(run: Path) -> list[int]:
    """Return the steps of a run's checkpoints in ascending order. The files are not checked."""
    steps = (step_of(path) for path in (run / FOLDER_NAME).glob("step_*"))
    return sorted(step for step in steps if step is not None)


def complete_steps(run: Path) -> list[int]:
    """Return the steps of a run's checkpoints that have a manifest, in ascending order. The files are not checked."""
    return [step for step in saved_steps(run) if (step_folder(run, step) / COMPLETE_NAME).is_file()]


def read_state(folder: Path) -> TrainState:
    """Read the `TrainState` of a checkpoint. Raises `CheckpointError` if `state.json` is missing or damaged."""
    try:
        return TrainState.from_dict(json.loads((folder / STATE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE_NAME}: cannot be read ({error}); use an earlier checkpoint") from None


def candidates(resume: str, run: Path) -> list[Path]:
    """Return the checkpoints that a run may resume, newest first, or an empty list if the run starts at step 0.

    `resume` is "auto", "never", or the path of a run folder or checkpoint.

    Raises `CheckpointError` if `run` has checkpoints and `resume` is "never", or if `resume` is a path without a
    checkpoint.
    """
    if resume == "never" and saved_steps(run):
        raise CheckpointError(f"{run}: has checkpoints, and --resume is never; choose another --output")
    if resume in ("auto", "never"):
        return _newest_first(run)
    source = Path(resume)
    if step_of(source) is not None or (source / COMPLETE_NAME).is_file():
        return [source]
    if found := _newest_first(source):
        return found
    raise CheckpointError(f"--resume {resume}: holds no checkpoint; pass a run folder, a step_… folder, auto or never")


def _newest_first(run: Path) -> list[Path]:
    return [step_folder(run, step) for step in reversed(saved_steps(run))]
