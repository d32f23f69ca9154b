"""Checkpoints: a step's folder becomes visible only when all of it is on disk.

`checkpoints/step_00001000/` holds DeepSpeed's files, `state.json` (`TrainState`), `probe.npz` (what the
model answered to a fixed input, which export checks itself against) and, last, `complete.json` (seal.py: every
file's size and SHA-256). It is written under another name and renamed. `restore.py` reads it back.
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
)
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.distributed.collectives import barrier, from_every_rank, on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import flush_to_disk, write_text

BYTES_PER_PARAMETER = 16
"""Master weight, two moments and the weight itself, all in fp32: what a first checkpoint takes at the most."""
ROOM_BESIDE = 1_000_000
"""Bytes for what is written beside the tensors, and for what a file system adds."""


class SaveError(CheckpointError):
    """A rank could not write its part of a checkpoint."""

    on_one_rank = True


def aside_name(path: Path) -> Path:
    """Where something is written, or put before it is deleted: `remove_leftovers` clears it after a kill."""
    return path.with_name(f".{path.name}.tmp")


def remove_leftovers(run: Path) -> None:
    """Delete what killed processes left half-written or half-deleted in a run folder."""
    for path in (*run.glob(".*.tmp"), *(run / FOLDER_NAME).glob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def checkpoint_layout(engine: Any, ranks: Ranks) -> CheckpointLayout:
    """How this run spreads its tensors over files."""
    return CheckpointLayout(
        ranks.world_size, int(engine.zero_optimization_stage()), bool(engine.zero_nvme_offload_optimizer())
    )


def save_checkpoint(
    engine: Any, state: TrainState, run: Path, ranks: Ranks, write_metadata: Callable[[Path], None]
) -> float:
    """Save on all ranks together; returns the seconds it took. `write_metadata(folder)` runs on every rank.

    `CheckpointError` where the disk has no room, before anything is written. `SaveError` on the rank that could not
    write; earlier checkpoints stay as they are.
    """
    start = time.perf_counter()
    final = step_folder(run, state.step)
    aside = aside_name(final)
    on_first_rank(lambda: _begin(aside, run, engine), ranks)
    with _failing_with_one_line(aside, ranks):
        engine.save_checkpoint(str(aside.parent), tag=aside.name, save_latest=False)
        write_metadata(aside)
        if ranks.is_first:
            write_text(aside / STATE_NAME, state.to_json())
        shares = from_every_rank(hash_own_files(aside, ranks.rank, ranks.world_size))
        if ranks.is_first:
            files = {name: entry for share in shares for name, entry in share.items()}
            write_checkpoint_manifest(aside, CheckpointManifest(checkpoint_layout(engine, ranks), files))
            _show(aside, final)
    barrier()
    return time.perf_counter() - start


def _begin(aside: Path, run: Path, engine: Any) -> None:
    """An empty folder to write to, if there is room for a checkpoint."""
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        free = shutil.disk_usage(aside.parent).free
    except OSError as error:
        raise CheckpointError(f"{aside.parent}: no checkpoint can be written ({error}); {MEND_DISK}") from None
    needed = expected_bytes(run, engine)
    if needed > free:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{aside.parent}: a checkpoint takes about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free; "
            f"{MEND_DISK}"
        )


MEND_DISK = "free space (or keep fewer: --train.keep_last) and start again; the earlier checkpoints are as they were"


def expected_bytes(run: Path, engine: Any) -> int:
    """Room for the coming checkpoint: a little more than the last one, or a bound from the number of parameters."""
    for step in reversed(complete_steps(run)):
        with contextlib.suppress(CheckpointError):
            return int(1.02 * read_checkpoint_manifest(step_folder(run, step)).num_bytes) + ROOM_BESIDE
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return BYTES_PER_PARAMETER * parameters + ROOM_BESIDE


@contextlib.contextmanager
def _failing_with_one_line(aside: Path, ranks: Ranks) -> Iterator[None]:
    """A write that fails becomes a `SaveError`, and what was written goes away."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError, without the cause; so do collectives a lost rank.
        from_torch = "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
        if not isinstance(error, OSError) and not from_torch:
            raise
        shutil.rmtree(aside, ignore_errors=True)
        reason = "a file came out too short: the disk is full or fails" if from_torch else str(error)
        raise SaveError(f"rank {ranks.rank}: {aside}: cannot be written ({reason}); {MEND_DISK}") from None


def _show(aside: Path, final: Path) -> None:
    """Give a finished checkpoint its name; one of the same step, which it replaces, is put aside before."""
    old = final.with_name(f".{final.name}.old.tmp")
    if final.exists():
        _delete(final, old)
    os.rename(aside, final)
    flush_to_disk(final.parent)
    write_latest(final)


def write_latest(folder: Path) -> None:
    """Name the newest checkpoint in `checkpoints/latest`, for people and other programs; nothing here reads it."""
    write_text(folder.parent / LATEST_NAME, f"{folder.name}\n")


def rename_damaged(folder: Path) -> None:
    """Rename a damaged checkpoint to step_….damaged, so that nothing takes it for one."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)


def _delete(folder: Path, aside: Path) -> None:
    """Delete a checkpoint so that a kill at any moment leaves all of it or nothing that bears its name."""
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_old_checkpoints(run: Path, keep_last: int, keep_every: int = 0) -> None:
    """Delete all but the last `keep_last` checkpoints (0: keep all) and those of every `keep_every`-th step."""
    steps = complete_steps(run)
    for step in steps[:-keep_last] if keep_last else []:
        if not keep_every or step % keep_every:
            folder = step_folder(run, step)
            _delete(folder, aside_name(folder))


def check_checkpoint(folder: Path) -> CheckpointManifest:
    """The record of a checkpoint, once all of its files were checked by this process alone; `CheckpointError` else."""
    record = read_checkpoint_manifest(folder)
    if damage := find_damage(folder, record):
        raise CheckpointError(f"{damage}; use an earlier checkpoint")
    return record
