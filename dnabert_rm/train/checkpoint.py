"""Checkpoints: a step's folder becomes visible only when all of it is on disk.

`checkpoints/step_00001000/` holds DeepSpeed's files, `state.json` (`TrainState`), `probe.npz` (what the
model answered to a fixed input, which export checks itself against) and, last, `complete.json` (every
file's size). It is written under another name and renamed. Nothing in it is loaded by pickle's free
rules: `torch.load` runs with `weights_only=True` and an explicit list of the classes that DeepSpeed stores.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dnabert_rm.errors import CheckpointError
from dnabert_rm.shards import write_atomically
from dnabert_rm.train.distributed import Ranks, barrier
from dnabert_rm.train.engine import Engine
from dnabert_rm.train.state import TrainState

FOLDER_NAME = "checkpoints"
STATE_NAME, COMPLETE_NAME = "state.json", "complete.json"
CONFIG_NAME, TOKENIZER_NAME, PROBE_NAME = "config.toml", "tokenizer.json", "probe.npz"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run / FOLDER_NAME / f"step_{step:08d}"


def complete_steps(run: Path) -> list[int]:
    """Steps of the run's complete checkpoints, rising."""
    folder = run / FOLDER_NAME
    names = [match for path in folder.glob("step_*") if (match := _STEP_FOLDER.fullmatch(path.name))]
    return sorted(int(match[1]) for match in names if (folder / match[0] / COMPLETE_NAME).is_file())


def save_checkpoint(
    engine: Engine, state: TrainState, run: Path, ranks: Ranks, write_extras: Callable[[Path], None]
) -> Path:
    """Save on all ranks together; returns the folder. `write_extras(folder)` runs on every rank before the seal."""
    final = step_folder(run, state.step)
    aside = final.with_name(f".{final.name}.tmp")
    if ranks.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    engine.deepspeed.save_checkpoint(str(aside.parent), tag=aside.name, save_latest=False)
    write_extras(aside)
    barrier()
    if ranks.is_first:
        write_atomically(aside / STATE_NAME, state.to_json())
        sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
        write_atomically(aside / COMPLETE_NAME, json.dumps({"world_size": ranks.world_size, "bytes": sizes}, indent=1))
        _flush(aside)
        if final.exists():
            shutil.rmtree(final)
        os.rename(aside, final)
        _flush(final.parent)
    barrier()
    return final


def _flush(folder: Path) -> None:
    """Ask the system to have the folder and its files on disk."""
    for path in (*(item for item in folder.iterdir() if item.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def remove_old(run: Path, keep_last: int) -> None:
    """Delete all but the last `keep_last` checkpoints; 0 keeps all."""
    steps = complete_steps(run)
    for step in steps[:-keep_last] if keep_last else []:
        shutil.rmtree(step_folder(run, step))


def read_state(folder: Path) -> TrainState:
    """The state in a checkpoint, after its files' sizes were checked; `CheckpointError` names what is wrong."""
    check_complete(folder)
    try:
        return TrainState.from_dict(json.loads((folder / STATE_NAME).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE_NAME}: cannot be read ({error}); use an earlier checkpoint") from None


def check_complete(folder: Path) -> dict[str, Any]:
    """The completeness record of a checkpoint, once every file has the size it says; `CheckpointError` else."""
    try:
        record = json.loads((folder / COMPLETE_NAME).read_text())
        sizes = dict(record["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder}: is not a complete checkpoint; name one that is, or an earlier one") from None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{path}: is missing or not {size} bytes long; use an earlier checkpoint")
    return record


def load_checkpoint(engine: Engine, folder: Path, ranks: Ranks) -> None:
    """Put weights and optimizer of a checkpoint into the engine, on all ranks together.

    `CheckpointError` where it was saved by another number of ranks.
    """
    saved_ranks = check_complete(folder)["world_size"]
    if saved_ranks != ranks.world_size:
        raise CheckpointError(
            f"{folder}: was saved by {saved_ranks} ranks and this run has {ranks.world_size}; start {saved_ranks} ranks"
        )
    with safe_torch_load():
        path, _ = engine.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found no checkpoint in it; use an earlier one")


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """Inside, every `torch.load`, DeepSpeed's too, runs with `weights_only=True`: a checkpoint can't run code.

    DeepSpeed asks for `weights_only=False` by name, so the argument is overridden. The two classes of its own that
    it stores are allowed by name.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    plain_load = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        try:
            return plain_load(file, *args, **kwargs)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"{file}: holds more than tensors, or is damaged, and was not loaded; use another checkpoint"
            ) from None

    torch.load = load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum]):
            yield
    finally:
        torch.load = plain_load
