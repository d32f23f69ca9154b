"""Reject changes of settings or data that would alter the results of a resumed run. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.checksums import CheckpointLayout, read_checkpoint_manifest
from dnabert_rm.checkpoint.run_folder import CHANGES_NAME, CONFIG_NAME, TOKENIZER_NAME, read_state
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig, free_on_resume, resolve
from dnabert_rm.config.deepspeed_config import load_ds_config, zero_stage
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.model.pretrained import SHAPE_FIELDS, is_same_size, model_fields
from dnabert_rm.utils.errors import CheckpointError, ConfigError
from dnabert_rm.utils.files import read_json, read_json_lines, write_text

FINGERPRINT = "data fingerprint"
_OVERRIDE = "undo the change, choose another --output, or accept the change with --allow-changes"
_BATCH_WARMUP = ("train.batch_start", "train.batch_increment", "train.batch_warmup_steps")


@dataclass(frozen=True)
class CheckpointMetadata:
    """Metadata of a checkpoint: folder, training state, configuration, tokenizer and model shape."""

    folder: Path
    state: TrainState
    config: RunConfig
    tokenizer: TokenizerInfo
    shape: dict[str, Any]
    """Architecture and sizes of the saved model, named as in `[model]`."""


@dataclass(frozen=True)
class SavedFormat:
    """Layout and precision of a checkpoint, which determine names and contents of DeepSpeed's files."""

    layout: CheckpointLayout
    precision: str

    @classmethod
    def of(cls, folder: Path) -> SavedFormat:
        """Read the format of a checkpoint. Raises `CheckpointError` if its manifest or configuration is damaged."""
        return cls(read_checkpoint_manifest(folder).layout, stored_config(folder).train.precision)

    def __str__(self) -> str:
        return f"{self.layout.world_size} ranks under ZeRO stage {self.layout.zero_stage} in {self.precision}"


@dataclass(frozen=True)
class Change:
    """A difference between a resumed run and its checkpoint, in a setting or in the data.

    `field` is the setting's dotted name, or `FINGERPRINT` if the data differ. `old` is the checkpoint's value, and
    `new` is the run's value.
    """

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} was {self.old} and is {self.new}"


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read a checkpoint's metadata. Raises `CheckpointError` if a metadata file is missing or damaged."""
    shape = model_fields(folder, missing="use another checkpoint")
    return CheckpointMetadata(folder, read_state(folder), stored_config(folder), stored_tokenizer(folder), shape)


def stored_config(folder: Path) -> RunConfig:
    """Read a checkpoint's training configuration. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return resolve(tomllib.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: cannot be read ({error}); use another checkpoint") from None


def stored_tokenizer(folder: Path) -> TokenizerInfo:
    """Read the tokenizer of a checkpoint's training data. Raises `CheckpointError` if it is missing or damaged."""
    path = folder / TOKENIZER_NAME
    content = read_json(path, error=CheckpointError, advice="use another checkpoint")
    try:
        return TokenizerInfo(**content)
    except TypeError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from None


def check_compatible(
    metadata: CheckpointMetadata, config: RunConfig, tokenizer: TokenizerInfo, fingerprint: str
) -> list[Change]:
    """Return the changes since the checkpoint that alter the training results.

    `tokenizer` and `fingerprint` describe this run's data.

    Raises `CheckpointError` if there are such changes and `--allow-changes` is not given. Some changes are errors even
    with `--allow-changes`: another tokenizer, model shape or batch-size warm-up, and a change from or to fp16.
    """
    folder = metadata.folder
    _check_tokenizer(folder, metadata.tokenizer, tokenizer)
    _check_shape(metadata, config)
    # Before the precision: "auto" depends on the stage, and would be reported as a change that nobody made.
    _check_stage(folder, config)
    changes = find_changes(metadata, config, fingerprint)
    _check_possible(folder, changes)
    if changes and not config.train.allow_changes:
        raise CheckpointError(f"{folder}: {'; '.join(map(_explain, changes))}; {_OVERRIDE}")
    return changes


def _check_stage(folder: Path, config: RunConfig) -> None:
    try:
        saved = SavedFormat.of(folder)
    except CheckpointError:  # damage is reported when the checkpoint is loaded
        return
    stage = zero_stage(load_ds_config(config.train.ds_config)[1])
    if saved.layout.zero_stage != stage and 0 in (saved.layout.zero_stage, stage):
        raise stage_error(folder, saved, stage, config.train.precision)


def stage_error(folder: Path, saved: SavedFormat, stage: int, precision: str) -> CheckpointError:
    """Return the error that DeepSpeed can't convert between stage 0 and `stage`, for a run with this precision."""
    # Stage 0 is for fp32 only.
    other = f" and --precision {saved.precision}" if precision not in (saved.precision, "auto") else ""
    return CheckpointError(
        f"{folder}: was saved by {saved}, and this run has stage {stage}; DeepSpeed can't convert "
        f"between stage 0 and the other stages; pass a --ds-config with stage {saved.layout.zero_stage}{other}"
    )


def _check_tokenizer(folder: Path, stored: TokenizerInfo, current: TokenizerInfo) -> None:
    # A BPE model is identified by its hash, and its file may have another name.
    if dataclasses.replace(stored, model=current.model) == current:
        return
    raise CheckpointError(
        f"{folder}: was trained with {_tokenizer_name(stored)}, but the data have {_tokenizer_name(current)}; a "
        "trained model can't change its tokenizer: pass data that were built with the checkpoint's tokenizer, or "
        "choose another --output"
    )


def _tokenizer_name(tokenizer: TokenizerInfo) -> str:
    if tokenizer.kind == "kmer":
        return f"{tokenizer.k}-mers in the base order {tokenizer.base_order} ({tokenizer.vocab_size} ids)"
    digest = (tokenizer.model_sha256 or "unknown")[:12]
    return f"a {tokenizer.kind} tokenizer of {tokenizer.vocab_size} ids (SHA-256 {digest})"


def without_init_from(config: RunConfig) -> RunConfig:
    """Return `config` without `model.init_from`: a resumed run has its sizes in `[model]`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, init_from=""))


def _check_shape(metadata: CheckpointMetadata, config: RunConfig) -> None:
    """Raise `CheckpointError` if the model shape in the run's settings differs from the checkpoint's model shape."""
    asked = {name: getattr(config.model, name) for name in SHAPE_FIELDS}
    changes = [
        str(Change(f"model.{name}", value, asked[name]))
        for name, value in metadata.shape.items()
        if not is_same_size(asked[name], value)
    ]
    if changes:
        raise CheckpointError(
            f"{metadata.folder}: {'; '.join(changes)}; a trained model can't change its shape: undo the change (with "
            "--preset or the model's settings), or choose another --output for a new model"
        )


def find_changes(metadata: CheckpointMetadata, config: RunConfig, fingerprint: str) -> list[Change]:
    """Return all changes since the checkpoint that alter the results, except changes of tokenizer or model shape."""
    stored = metadata.config.to_dict()
    current = config.to_dict()
    if current["train"]["precision"] == "auto":  # before the run has selected its device
        current["train"]["precision"] = stored["train"]["precision"]
    may_differ = free_on_resume() | {f"model.{name}" for name in SHAPE_FIELDS}
    if config.data.remainder == "drop":
        # If remainders are dropped, an epoch's length depends on the batch size. Another size would shift every sample.
        may_differ -= {"train.global_batch"}
    found = [Change(FINGERPRINT, metadata.state.fingerprint, fingerprint)]
    found += [
        Change(f"{section}.{name}", stored[section][name], value)
        for section, values in current.items()
        for name, value in values.items()
        if f"{section}.{name}" not in may_differ
    ]
    return [change for change in found if change.old != change.new]


def _check_possible(folder: Path, changes: list[Change]) -> None:
    """Raise `CheckpointError` for changes that are impossible in a resumed run, even with `--allow-changes`."""
    for change in changes:
        if change.field in _BATCH_WARMUP:
            raise CheckpointError(
                f"{folder}: {change}; a resumed run keeps its batch-size warm-up: undo the change (--global-batch may "
                "change instead), or choose another --output"
            )
        if change.field == "train.precision" and "fp16" in (change.old, change.new):
            raise CheckpointError(
                f"{folder}: {change}; DeepSpeed can't convert to or from fp16: undo the change, or export the "
                "checkpoint with `dnabert-rm export` and start a new run with --init-from"
            )


def _explain(change: Change) -> str:
    """Describe one change, as part of the error message that asks for `--allow-changes`."""
    if change.field == FINGERPRINT:
        return (
            f"was trained on other data (fingerprint {_short(change.old)}, now {_short(change.new)}), so samples would "
            "be repeated or skipped"
        )
    if change.field == "train.steps":
        return (
            f"{change} (with --allow-changes the run goes on to step {change.new}; learning rate, phases and "
            f"a switch of the loss then follow the schedule of a run of {change.new} steps and may jump)"
        )
    return str(change)


def _short(fingerprint: str) -> str:
    """Return the first digits of a fingerprint, or of each data set's, which "+" separates."""
    return "+".join(part[:12] for part in fingerprint.split("+"))


def describe_changes(step: int, changes: list[Change]) -> str:
    """Return one line of text on the changes accepted with `--allow-changes` for a run that resumes at `step`."""
    shown = (
        f"{FINGERPRINT} was {_short(change.old)} and is {_short(change.new)}"
        if change.field == FINGERPRINT
        else str(change)
        for change in changes
    )
    return f"changed from step {step} on (--allow-changes): {'; '.join(shown)}"


def record_changes(run: Path, step: int, changes: list[Change]) -> None:
    """Add the changes accepted with `--allow-changes` to the run's `changes.jsonl`, one JSON object per change.

    The run resumes at `step`. Entries for this step and later steps are removed from the file, because the run repeats
    these steps.
    """
    path = run / CHANGES_NAME
    earlier = [row for row in read_json_lines(path) if row["step"] < step] if path.is_file() else []
    rows = [*earlier, *({"step": step, **dataclasses.asdict(change)} for change in changes)]
    if rows or path.is_file():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
