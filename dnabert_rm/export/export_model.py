"""Export a checkpoint as one Hugging Face folder, for any ZeRO stage and any number of ranks.

The folder is written under a temporary name. It is renamed only after stock transformers has loaded it and reproduced
the training model's logits for a fixed input (`probe.npz` in the checkpoint). See docs/predictions.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm.checkpoint.compatibility import stored_config, stored_tokenizer
from dnabert_rm.checkpoint.reference_output import ReferenceOutput, load_reference_output
from dnabert_rm.checkpoint.run_folder import (
    CONFIG_NAME,
    REFERENCE_OUTPUT_NAME,
    complete_steps,
    read_state,
    step_folder,
)
from dnabert_rm.checkpoint.save import check_checkpoint
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.export.consolidate import SavedWeights, mean_weights, mean_weights_one_by_one, read_weights
from dnabert_rm.export.model_card import provenance, write_card_and_provenance
from dnabert_rm.export.self_check import check_exported
from dnabert_rm.export.tokenizer import check_tokenizer, write_tokenizer
from dnabert_rm.model.build import architecture_of
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.utils.errors import CheckpointError, DataError
from dnabert_rm.utils.files import apply_umask, atomic_folder

MAX_SHARD_SIZE = "2GB"
"""Larger models are split into several safetensors files."""


@dataclass(frozen=True)
class ExportResult:
    """The exported folder and the result of its self-check."""

    folder: Path
    steps: list[int]
    """Steps of the averaged checkpoints; a single step without averaging."""
    num_parameters: int
    max_difference: float
    """Largest difference between exported and training logits, divided by the largest training logit (at least 1)."""


@dataclass(frozen=True)
class _CheckpointToExport:
    """Records of a checkpoint: training state, configuration, tokenizer, and reference logits for a fixed input."""

    state: TrainState
    config: RunConfig
    tokenizer: TokenizerInfo
    reference: ReferenceOutput


def find_checkpoints(path: Path, step: int | None = None, average: int = 1) -> list[Path]:
    """Return the chosen checkpoint of a run and the `average - 1` complete checkpoints before it, oldest first.

    If `path` is a checkpoint, this checkpoint is chosen. If `path` is a run folder, the checkpoint of `step` is chosen,
    or the last complete checkpoint if `step` is None.

    Raises `CheckpointError` if the run has no complete checkpoint of `step`, or too few checkpoints before it, and if
    `path` is the checkpoint of another step.
    """
    if average < 1:
        raise CheckpointError(f"--average {average}: pass a number of checkpoints, 1 or more")
    if (path / CONFIG_NAME).is_file() and (path / REFERENCE_OUTPUT_NAME).is_file():
        own_step = read_state(path).step
        if step not in (None, own_step):
            raise CheckpointError(f"--step {step}: {path} has step {own_step}; omit --step, or pass the run folder")
        if average == 1:
            return [path]
        # Earlier checkpoints of the run are in the same folder as `path`.
        step = own_step
        path = path.resolve().parent.parent
    steps = complete_steps(path)
    if not steps:
        raise CheckpointError(f"{path}: holds no complete checkpoint; choose a run folder or a step_… folder")
    if step is not None and step not in steps:
        raise CheckpointError(f"{path}: has no checkpoint of step {step}; choose one of {', '.join(map(str, steps))}")
    chosen = [saved for saved in steps if step is None or saved <= step][-average:]
    if len(chosen) < average:
        raise CheckpointError(
            f"{path}: has {len(chosen)} checkpoints up to step {chosen[-1]}, not {average}; lower --average, "
            "or train with a larger --train.keep_last"
        )
    return [step_folder(path, saved) for saved in chosen]


def export(
    source: str | Path,
    output: str | Path,
    step: int | None = None,
    average: int = 1,
    max_shard_size: str = MAX_SHARD_SIZE,
    license_id: str | None = None,
) -> ExportResult:
    """Export a checkpoint, or the mean of `average` successive checkpoints of a run, to the new folder `output`.

    `source` is a run folder or a checkpoint. `step` selects the last checkpoint to use from a run folder; the default
    is the run's last checkpoint. `license_id` is the license in the model card, by default none.

    Raises `CheckpointError` if a checkpoint is missing or damaged, or if the exported model differs from the trained
    model. Raises `DataError` if `output` exists or can't be written. After an error, an incomplete export is removed.
    docs/predictions.md describes the memory needed.
    """
    checkpoints = find_checkpoints(Path(source), step, average)
    output = Path(output)
    if output.exists():
        raise DataError(f"{output}: exists already; choose another folder or remove this one")
    records = [_read_checkpoint(checkpoint) for checkpoint in checkpoints]
    steps = [record.state.step for record in records]
    last = records[-1]
    with _new_folder(output) as temporary:
        num_parameters, reference = _write_model(checkpoints, last, temporary, max_shard_size)
        aliases = SavedWeights(checkpoints[-1]).aliases
        difference = check_exported(temporary, _trained_weights(checkpoints), aliases, reference, exact=average == 1)
        check_tokenizer(temporary, last.tokenizer, last.config.data.overlap)
        facts = provenance(checkpoints[-1], last.state, last.config, last.tokenizer, steps, difference)
        write_card_and_provenance(temporary, facts, license_id)
        apply_umask(temporary)
    return ExportResult(output, steps, num_parameters, difference)


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output` after success. Raise `DataError` if a write fails."""
    try:
        with atomic_folder(output) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise DataError(f"{output}: cannot be written ({error}); free disk space or choose another folder") from None


def _read_checkpoint(checkpoint: Path) -> _CheckpointToExport:
    """Verify a checkpoint, and read its training state, configuration, tokenizer and reference logits.

    Raise `CheckpointError` if the checkpoint is damaged.
    """
    check_checkpoint(checkpoint)
    state = read_state(checkpoint)
    reference = load_reference_output(checkpoint / REFERENCE_OUTPUT_NAME)
    return _CheckpointToExport(state, stored_config(checkpoint), stored_tokenizer(checkpoint), reference)


def _trained_weights(checkpoints: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Read the checkpoints again for the self-check. Yield the name of each weight and its mean over `checkpoints`."""
    if len(checkpoints) > 1:
        return mean_weights_one_by_one(checkpoints)
    return read_weights(checkpoints[0], "comparing weights")


def _write_model(
    checkpoints: list[Path], last: _CheckpointToExport, folder: Path, max_shard_size: str
) -> tuple[int, ReferenceOutput]:
    """Write weights, configuration and tokenizer. Return the number of parameters and the reference logits."""
    model = _trained_model(checkpoints, last)
    reference = last.reference if len(checkpoints) == 1 else _reference_of_mean(model, last.reference)
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except ValueError as error:
        raise DataError(f"--max-shard-size {max_shard_size}: {error}") from None
    write_tokenizer(checkpoints[-1], last.tokenizer, last.config, folder)
    return model.num_parameters(), reference


def _trained_model(checkpoints: list[Path], last: _CheckpointToExport) -> PreTrainedModel:
    """Build the transformers model on the CPU, with the fp32 master weights averaged over the checkpoints."""
    checkpoint = checkpoints[-1]
    architecture = architecture_of(last.config.model, last.tokenizer.vocab_size, checkpoint)
    with init_empty_weights():
        model = AutoModelForMaskedLM.from_config(architecture, dtype=torch.float32)
    weights = mean_weights(checkpoints)
    try:
        weights |= {alias: weights[name] for alias, name in SavedWeights(checkpoint).aliases.items()}
        model.load_state_dict(weights, strict=True, assign=True)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint}: its weights do not match its configuration ({reason}); use another checkpoint"
        ) from None
    model.tie_weights()
    return model.eval()


def _reference_of_mean(model: PreTrainedModel, reference: ReferenceOutput) -> ReferenceOutput:
    """Return a copy of `reference` with new logits: those of `model`, run by the training code in fp32 on the CPU."""
    with torch.no_grad():
        logits = MaskedLM(model, whole_last_layer=True)(
            torch.from_numpy(reference.input_ids), torch.from_numpy(reference.positions)
        )
    return dataclasses.replace(reference, logits=logits.numpy(), precision="fp32", device="cpu")
