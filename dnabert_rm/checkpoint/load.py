"""Load a checkpoint on all ranks together: verify its files, convert it if necessary, and load it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.checksums import (
    CheckpointManifest,
    find_damage,
    is_own_file,
    read_checkpoint_manifest,
)
from dnabert_rm.checkpoint.compatibility import SavedFormat
from dnabert_rm.checkpoint.reshard import (
    UNIVERSAL_NAME,
    check_convertible,
    convert,
    converted_folder,
    remove_converted,
)
from dnabert_rm.checkpoint.save import checkpoint_layout
from dnabert_rm.distributed.collectives import barrier, gather_objects, on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.patches.deepspeed_patches import (
    check_tensors_only,
    keep_optimizer_settings,
    safe_torch_load,
    universal_loading,
)
from dnabert_rm.utils.errors import CheckpointError, RankReadError


def find_damage_on_all_ranks(folder: Path, ranks: Ranks) -> str | None:
    """Check a checkpoint's files on all ranks. Return a message about a damaged file, or None if all are intact.

    Each rank checks its share of the files. Sizes and hashes must match the manifest, and torch files must contain only
    tensors and plain values. All ranks return the same message.
    """
    try:
        manifest = on_first_rank(lambda: read_checkpoint_manifest(folder), ranks)
    except CheckpointError as error:
        return str(error)
    found = find_damage(folder, manifest, ranks.rank, ranks.world_size) or _find_code(folder, manifest, ranks)
    return next((damage for damage in gather_objects(found) if damage), None)


def _find_code(folder: Path, manifest: CheckpointManifest, ranks: Ranks) -> str | None:
    for name in sorted(manifest.files):
        if name.endswith(".pt") and is_own_file(name, ranks.rank, ranks.world_size):
            try:
                check_tensors_only(folder / name)
            except CheckpointError as error:
                return str(error)
    return None


def load_checkpoint(engine: Any, folder: Path, run: Path, ranks: Ranks, precision: str) -> None:
    """Load weights and optimizer state of a verified checkpoint into DeepSpeed's `engine`, on all ranks together.

    Under ZeRO, a checkpoint saved with another number of ranks, ZeRO stage or precision is converted before it is
    loaded. The converted copy is in a temporary folder inside `run`. `precision` is this run's precision.

    Raises `CheckpointError` if the checkpoint can't be converted, and `RankReadError` if the checkpoint does not fit
    the model.
    """
    saved = on_first_rank(lambda: SavedFormat.of(folder), ranks)
    current = SavedFormat(checkpoint_layout(engine, ranks), precision)
    # Without ZeRO every rank has all tensors, and DeepSpeed loads them for any number of ranks.
    is_loadable = saved == current or saved.layout.zero_stage == current.layout.zero_stage == 0
    with safe_torch_load(), _explain_misfit(folder), keep_optimizer_settings(engine):
        if is_loadable:
            path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        else:
            path = _convert_and_load(engine, folder, run, ranks, saved, current)
    if path is None:
        raise RankReadError(f"{folder}: DeepSpeed found no checkpoint in this folder; use an earlier checkpoint")


def _convert_and_load(
    engine: Any, folder: Path, run: Path, ranks: Ranks, saved: SavedFormat, current: SavedFormat
) -> str | None:
    """Convert a checkpoint on rank 0 and load it on all ranks. Return the path that DeepSpeed loaded, or None."""
    check_convertible(folder, saved, current)
    if ranks.is_first:
        was, now = saved.layout, current.layout
        is_same = saved.precision == current.precision
        was_in, now_in = ("", "") if is_same else (f" in {saved.precision}", f" in {current.precision}")
        print(
            f"{folder.name}: saved by {was.world_size} ranks under ZeRO stage {was.zero_stage}{was_in}; converting "
            f"it for {now.world_size} ranks under stage {now.zero_stage}{now_in}",
            file=sys.stderr,
            flush=True,
        )
    on_first_rank(lambda: convert(folder, run, engine.module, saved.layout, current.layout), ranks)
    with universal_loading(engine):
        path, _ = engine.load_checkpoint(str(converted_folder(run)), tag=UNIVERSAL_NAME)
    barrier()  # the other ranks may still be reading
    on_first_rank(lambda: remove_converted(run), ranks)
    return path


@contextlib.contextmanager
def _explain_misfit(folder: Path) -> Iterator[None]:
    """Raise `RankReadError` instead of the errors that DeepSpeed raises if a checkpoint does not fit the model."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RankReadError(
            f"{folder}: does not fit this run's model ({type(error).__name__}: {reason}); choose another checkpoint"
        ) from None
