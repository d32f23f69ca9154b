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
import sys
import threading
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
from dnabert_rm.checkpoint.host_copy import copy_to_host
from dnabert_rm.checkpoint.run_folder import (
    FOLDER_NAME,
    LATEST_NAME,
    STATE_NAME,
    complete_steps,
    step_folder,
    temporary_folder,
)
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.distributed.collectives import gather_objects, on_first_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.patches.deepspeed_patches import collect_files
from dnabert_rm.utils.errors import FAILING_DISK, CheckpointError, file_system_advice
from dnabert_rm.utils.files import flush_to_disk, write_text

BYTES_PER_PARAMETER = 16
"""Upper bound for a first checkpoint: master weight, two moments and the weight, all in fp32."""
OVERHEAD_BYTES = 1_000_000
"""Space for the files without tensors and for file system metadata."""
EARLIER_CHECKPOINTS = "and start again; the earlier checkpoints are unchanged"
DISK_ADVICE = f"free space on disk, or keep fewer checkpoints (--train.keep_last), {EARLIER_CHECKPOINTS}"


class SaveError(CheckpointError):
    """A rank could not write its part of a checkpoint."""

    on_one_rank = True


class CheckpointSave:
    """One checkpoint on its way to the disk. All ranks create it, and all ranks call `finish`, at the same steps.

    The constructor copies DeepSpeed's state to host memory. A thread writes and hashes this rank's files. `finish`
    waits for the threads of all ranks, and gives the checkpoint its name. If a process is killed before that, only a
    temporary folder is left.
    """

    def __init__(
        self, engine: Any, state: TrainState, run: Path, ranks: Ranks, write_metadata: Callable[[Path], None]
    ) -> None:
        """Copy the state of DeepSpeed's `engine`, and start to write it.

        `write_metadata(folder)` writes further files of rank 0 to the checkpoint's temporary folder.

        Raises `CheckpointError` before any file is written if the disk has too little space. Raises `SaveError` if
        the folder can't be written.
        """
        self._final = step_folder(run, state.step)
        self._temporary = temporary_folder(self._final)
        self._ranks = ranks
        self._layout = checkpoint_layout(engine, ranks)
        self._outcome: dict[str, tuple[int, str]] | BaseException = {}
        on_first_rank(lambda: _make_temporary(self._temporary, run, engine), ranks)
        with _explain_write_failure(self._temporary, ranks.rank), collect_files(engine, copy_to_host) as files:
            engine.save_checkpoint(str(self._temporary.parent), tag=self._temporary.name, save_latest=False)
        self._writes = [*files.values()]
        if ranks.is_first:
            self._writes.append(lambda: write_metadata(self._temporary))
            self._writes.append(lambda: write_text(self._temporary / STATE_NAME, state.to_json()))
        # A daemon, so that a run that fails does not wait for it.
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        """Write and hash this rank's files."""
        try:
            with _explain_write_failure(self._temporary, self._ranks.rank):
                while self._writes:
                    self._writes.pop(0)()  # which frees the copy
                self._outcome = hash_own_files(self._temporary, self._ranks.rank, self._ranks.world_size)
        except BaseException as error:
            self._outcome = error

    @property
    def is_written(self) -> bool:
        """Whether this rank's thread has ended, also if it failed."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait until every rank has written its files, and give the checkpoint its name.

        Raises the error of the lowest rank that failed, usually a `SaveError`, on every rank. Earlier checkpoints stay
        unchanged.
        """
        self._thread.join()
        outcomes = gather_objects(self._outcome)
        try:
            for error in outcomes:
                if isinstance(error, BaseException):
                    raise error
            files = {name: entry for share in outcomes for name, entry in share.items()}
            on_first_rank(lambda: self._complete(files), self._ranks)
        except BaseException as error:
            if self._ranks.is_first:
                shutil.rmtree(self._temporary, ignore_errors=True)
            error.on_one_rank = False  # type: ignore[attr-defined]
            raise

    def _complete(self, files: dict[str, tuple[int, str]]) -> None:
        """Write the manifest, and give the checkpoint its name."""
        with _explain_write_failure(self._temporary, 0):
            write_checkpoint_manifest(self._temporary, CheckpointManifest(self._layout, files))
            _publish(self._temporary, self._final)


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
        raise CheckpointError(
            f"{temporary.parent}: no checkpoint can be written ({error}); {_disk_advice(error)}"
        ) from None
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
def _explain_write_failure(temporary: Path, rank: int) -> Iterator[None]:
    """If a write fails in the block, raise a one-line `SaveError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full or failing disk as a RuntimeError without the cause, and an error of `close` as
        # an "iostream error". Rank failures are RuntimeErrors too.
        from_torch = any(name in str(error) for name in ("inline_container", "PytorchStreamWriter", "iostream error"))
        if not isinstance(error, OSError) and not from_torch:
            raise
        reason = "a file is too short, so the disk is full or failing" if from_torch else str(error)
        raise SaveError(f"rank {rank}: {temporary}: cannot be written ({reason}); {_disk_advice(error)}") from None


def _disk_advice(error: OSError | RuntimeError) -> str:
    """Return what the user should do after a failed write."""
    if isinstance(error, OSError) and error.errno in FAILING_DISK:
        return f"{file_system_advice(error)}, {EARLIER_CHECKPOINTS}"
    return DISK_ADVICE


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

    A `keep_last` of 0 keeps all checkpoints. A `keep_every` of 0 keeps only the newest `keep_last`. A checkpoint that
    can't be deleted is reported, and deleted by a later call.
    """
    steps = complete_steps(run)
    for step in steps[:-keep_last] if keep_last else []:
        if not keep_every or step % keep_every:
            folder = step_folder(run, step)
            try:
                _delete(folder, temporary_folder(folder))
            except OSError as error:
                reason = error.strerror or str(error)
                print(f"warning: {folder}: can't be deleted ({reason}); the run tries again later", file=sys.stderr)


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
