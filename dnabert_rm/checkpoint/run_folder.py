"""What lies where in a run folder, and what of it says how far the run is. Torch-free."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dnabert_rm.checkpoint.checksums import COMPLETE_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.utils.errors import CheckpointError

FOLDER_NAME, LATEST_NAME, STATE_NAME = "checkpoints", "latest", "state.json"
CONFIG_NAME, TOKENIZER_NAME, REFERENCE_OUTPUT_NAME = "config.toml", "tokenizer.json", "probe.npz"
DATA_NAME = "data.json"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run / FOLDER_NAME / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint folder's name says; None where it is no such name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def saved_steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints, rising, damaged ones too."""
    steps = (step_of(path) for path in (run / FOLDER_NAME).glob("step_*"))
    return sorted(step for step in steps if step is not None)


def complete_steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints that were written to the end, rising; their files are not looked at."""
    return [step for step in saved_steps(run) if (step_folder(run, step) / COMPLETE_NAME).is_file()]


def read_state(folder: Path) -> TrainState:
    """The state in a checkpoint; `CheckpointError` where it is not one."""
    try:
        return TrainState.from_dict(json.loads((folder / STATE_NAME).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE_NAME}: cannot be read ({error}); use an earlier checkpoint") from None


def candidates(resume: str, run: Path) -> list[Path]:
    """Checkpoints that a run may begin from, the best first; none where it begins at step 0."""
    if resume == "never" and saved_steps(run):
        raise CheckpointError(f"{run}: has checkpoints, and --resume is never; name another --output")
    if resume in ("auto", "never"):
        return _newest_first(run)
    source = Path(resume)
    if step_of(source) is not None or (source / COMPLETE_NAME).is_file():
        return [source]
    if found := _newest_first(source):
        return found
    raise CheckpointError(f"--resume {resume}: holds no checkpoint; name a run folder, a step_… folder, auto or never")


def _newest_first(run: Path) -> list[Path]:
    return [step_folder(run, step) for step in reversed(saved_steps(run))]
