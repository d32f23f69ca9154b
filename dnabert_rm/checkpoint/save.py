"""Save, verify and delete checkpoints. A checkpoint gets its final name only after all its files are on disk.

A checkpoint is a folder such as `checkpoints/step_00001000/`. It contains DeepSpeed's files, `state.json`
(`TrainState`), `probe.npz` (the model's output for a fixed input, for checking exports) and other metadata. All files
are written to a temporary folder, which is renamed at the end. The manifest `complete.json` (see `checksums.py`) is
written last. `resume.py` and `load.py` read the checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.checksums import (
    CheckpointLayout,
    CheckpointManifest,
    find_damage,
    hash_own_files,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from dnabert_rm.checkpoint.run_folder import (
    FOLDER_NAME,
    LATEST_NAME,
    STATE_NAME,
    complete_steps,
    step_folder,
    temporary_folder,
)
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.distributed.collectives import barrier, gather_objects, on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import flush_to_disk, write_text

BYTES_PER_PARAMETER = 16
"""Upper bound for a first checkpoint: master weight, two moments and the weight, all in fp32."""
OVERHEAD_BYTES = 1_000_000
"""Space for the files without tensors and for file system metadata."""
DISK_ADVICE = (
    "free space on disk, or keep fewer checkpoints (--train.keep_last), and start again; "
    "the earlier checkpoints are unchanged"
)


class SaveError(CheckpointError):
    """A rank could not write its part of a checkpoint."""

    on_one_rank = True


def save_checkpoint(
    engine: Any, state: TrainState, run: Path, ranks: Ranks, write_metadata: Callable[[Path], None]
) -> float:
    """Save a checkpoint of DeepSpeed's `engine`, and return the duration in seconds. All ranks must call this.

    Every rank calls `write_metadata(folder)` with the checkpoint's temporary folder.

    If the disk has too little space, raises `CheckpointError` before any file is written. A rank that can't write its
    files raises `SaveError`. In both cases earlier checkpoints stay unchanged.
    """
    start = time.perf_counter()
    final = step_folder(run, state.step)
    temporary = temporary_folder(final)
    on_first_rank(lambda: _make_temporary(temporary, run, engine), ranks)
    with _explain_write_failure(temporary, ranks):
        engine.save_checkpoint(str(temporary.parent), tag=temporary.name, save_latest=False)
        write_metadata(temporary)
        if ranks.is_first:
            write_text(temporary / STATE_NAME, state.to_json())
        shares = gather_objects(hash_own_files(temporary, ranks.rank, ranks.world_size))
        if ranks.is_first:
            files = {name: entry for share in shares for name, entry in share.items()}
            write_checkpoint_manifest(temporary, CheckpointManifest(checkpoint_layout(engine, ranks), files))
            _publish(temporary, final)
    barrier()
    return time.perf_counter() - start


def checkpoint_layout(engine: Any, ranks: Ranks) -> CheckpointLayout:
    """Return the layout in which DeepSpeed's `engine` saves its tensors."""
    return CheckpointLayout(
        ranks.world_size, int(engine.zero_optimization_stage()), bool(engine.zero_nvme_offload_optimizer())
    )


def _make_temporary(temporary: Path, run: Path, engine: Any) -> None:
    """Create an empty temporary folder. Raises `CheckpointError` if the disk has too little space for a checkpoint."""
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary.parent).free
    except OSError as error:
        raise CheckpointError(f"{temporary.parent}: no checkpoint can be written ({error}); {DISK_ADVICE}") from None
    needed = expected_bytes(run, engine)
    if needed > free:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{temporary.parent}: a checkpoint takes about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free; "
            f"{DISK_ADVICE}"
        )


def expected_bytes(run: Path, engine: Any) -> int:
    """Return the expected size of the next checkpoint in bytes.

    This is slightly more than the size of the newest checkpoint. Without earlier checkpoints, it is an upper bound
    computed from the number of parameters.
    """
    for step in reversed(complete_steps(run)):
        with contextlib.suppress(CheckpointError):
            return int(1.02 * read_checkpoint_manifest(step_folder(run, step)).num_bytes) + OVERHEAD_BYTES
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return BYTES_PER_PARAMETER * parameters + OVERHEAD_BYTES


@contextlib.contextmanager
def _explain_write_failure(temporary: Path, ranks: Ranks) -> Iterator[None]:
    """If a write fails in the block, delete the temporary folder and raise a one-line `SaveError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError without the cause; rank failures are RuntimeErrors too.
        from_torch = "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
        if not isinstance(error, OSError) and not from_torch:
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        reason = "a file is too short, so the disk is full or failing" if from_torch else str(error)
        raise SaveError(f"rank {ranks.rank}: {temporary}: cannot be written ({reason}); {DISK_ADVICE}") from None


def _publish(temporary: Path, final: Path) -> None:
    """Rename a finished checkpoint to its final name, after deleting an older checkpoint of the same step."""
    if final.exists():
        _delete(final, temporary_folder(final.with_name(f"{final.name}.old")))
    os.rename(temporary, final)
    flush_to_disk(final.parent)
    write_latest(final)


def write_latest(folder: Path) -> None:
    """Write the newest checkpoint's name to `checkpoints/latest`. The file is for users and other programs."""
    write_text(folder.parent / LATEST_NAME, f"{folder.name}\n")


def rename_damaged(folder: Path) -> None:
    """Rename a damaged checkpoint to step_….damaged, so that it no longer counts as a checkpoint."""
    _move(folder, folder.with_name(f"{folder.name}.damaged"))


def remove_old_checkpoints(run: Path, keep_last: int, keep_every: int = 0) -> None:
    """Delete all checkpoints except the newest `keep_last` and those whose step is a multiple of `keep_every`.

    A `keep_last` of 0 keeps all checkpoints. A `keep_every` of 0 keeps only the newest `keep_last`.
    """
    steps = complete_steps(run)
    for step in steps[:-keep_last] if keep_last else []:
        if not keep_every or step % keep_every:
            folder = step_folder(run, step)
            _delete(folder, temporary_folder(folder))


def remove_leftovers(run: Path) -> None:
    """Delete temporary files and folders that killed processes left in a run folder."""
    for path in (*run.glob(".*.tmp"), *(run / FOLDER_NAME).glob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _delete(folder: Path, temporary: Path) -> None:
    """Delete a checkpoint after renaming it to `temporary`, so that a killed process leaves no partial checkpoint."""
    _move(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Rename a folder to `target`, and replace any folder with that name."""
    shutil.rmtree(target, ignore_errors=True)
    os.rename(folder, target)


def check_checkpoint(folder: Path) -> CheckpointManifest:
    """Check all files of a checkpoint in this process alone. Return the checkpoint's manifest.

    Raises `CheckpointError` if a file is missing or damaged.
    """
    manifest = read_checkpoint_manifest(folder)
    if damage := find_damage(folder, manifest):
        raise CheckpointError(f"{damage}; use an earlier checkpoint")
    return manifest
