"""Reading a checkpoint back: checked by all ranks together, converted where the run has another layout, loaded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.checksums import CheckpointManifest, find_damage, is_own_file, read_checkpoint_manifest
from dnabert_rm.checkpoint.reshard import (
    UNIVERSAL_NAME,
    check_convertible,
    convert,
    converted_folder,
    remove_converted,
    universal_loading,
)
from dnabert_rm.checkpoint.save import checkpoint_layout
from dnabert_rm.distributed.collectives import barrier, from_every_rank, on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.patches.deepspeed_patches import check_tensors_only, keep_optimizer_settings, safe_torch_load
from dnabert_rm.utils.errors import CheckpointError, RankReadError


def find_damage_on_all_ranks(folder: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, or None: the same on all ranks, among which the files are shared out.

    Sizes and hashes first; then that torch's files hold tensors and nothing that would run.
    """
    try:
        record = on_first_rank(lambda: read_checkpoint_manifest(folder), ranks)
    except CheckpointError as error:
        return str(error)
    mine = find_damage(folder, record, ranks.rank, ranks.world_size) or _find_code(folder, record, ranks)
    return next((damage for damage in from_every_rank(mine) if damage), None)


def _find_code(folder: Path, record: CheckpointManifest, ranks: Ranks) -> str | None:
    for name in sorted(record.files):
        if name.endswith(".pt") and is_own_file(name, ranks.rank, ranks.world_size):
            try:
                check_tensors_only(folder / name)
            except CheckpointError as error:
                return str(error)
    return None


def load_checkpoint(engine: Any, folder: Path, run: Path, ranks: Ranks) -> None:
    """Put weights and optimizer of a checked checkpoint into the engine of `run`, on all ranks together.

    Saved by another number of ranks or under another ZeRO stage it is converted first, aside in the run folder.
    `CheckpointError` where it does not fit this model or can't be converted.
    """
    saved, now = on_first_rank(lambda: read_checkpoint_manifest(folder), ranks).layout, checkpoint_layout(engine, ranks)
    # Without ZeRO every rank has everything, and DeepSpeed loads it for any number of ranks.
    as_it_is = saved == now or saved.zero_stage == now.zero_stage == 0
    with safe_torch_load(), _fitting(folder), keep_optimizer_settings(engine):
        if as_it_is:
            path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        else:
            check_convertible(folder, saved, now)
            if ranks.is_first:
                print(
                    f"{folder.name}: saved by {saved.world_size} ranks under ZeRO stage {saved.zero_stage}; converting "
                    f"it for {now.world_size} under stage {now.zero_stage}",
                    file=sys.stderr,
                    flush=True,
                )
            on_first_rank(lambda: convert(folder, run, engine.module, saved, now), ranks)
            with universal_loading(engine):
                path, _ = engine.load_checkpoint(str(converted_folder(run)), tag=UNIVERSAL_NAME)
            barrier()  # the others may still be reading
            on_first_rank(lambda: remove_converted(run), ranks)
    if path is None:
        raise RankReadError(f"{folder}: DeepSpeed found no checkpoint in it; use an earlier one")


@contextlib.contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """What DeepSpeed raises over a checkpoint of another shape becomes a `RankReadError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RankReadError(
            f"{folder}: does not fit this run's model ({type(error).__name__}: {reason}); name another checkpoint"
        ) from None
