"""A checkpoint of any ZeRO stage and number of ranks → one Hugging Face folder that has checked itself.

The folder is written aside and becomes visible only after stock transformers has loaded it and given
the training model's own answers (`probe.npz` of the checkpoint). docs/export.md has the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm.checkpoint.reference_output import ReferenceOutput, load_reference_output
from dnabert_rm.checkpoint.run_folder import (
    CONFIG_NAME,
    REFERENCE_OUTPUT_NAME,
    TOKENIZER_NAME,
    complete_steps,
    read_state,
    step_folder,
    step_of,
)
from dnabert_rm.checkpoint.save import check_checkpoint
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.export.consolidate import SavedWeights, mean_weights, mean_weights_one_by_one, read_weights
from dnabert_rm.export.model_card import provenance, write_records
from dnabert_rm.export.self_check import check_exported, check_tokenizer
from dnabert_rm.model.build import architecture_of
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.utils.errors import CheckpointError, DataError
from dnabert_rm.utils.files import atomic_folder, read_json

MAX_SHARD_SIZE = "2GB"
"""A model of more bytes is written as several safetensors files."""


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the steps whose mean it is, and how far its logits are from the trained ones."""

    folder: Path
    steps: list[int]
    num_parameters: int
    max_difference: float


@dataclass(frozen=True)
class _Records:
    """All that a checkpoint says of itself."""

    state: TrainState
    config: RunConfig
    tokenizer: TokenizerInfo
    probe: ReferenceOutput


def find_checkpoints(path: Path, step: int | None = None, average: int = 1) -> list[Path]:
    """The last `average` complete checkpoints, up to `step`, of a run folder; `path` may be a checkpoint itself.

    `CheckpointError` where there are not so many.
    """
    if average < 1:
        raise CheckpointError(f"--average {average}: name how many checkpoints, 1 or more")
    if (path / CONFIG_NAME).is_file() and (path / REFERENCE_OUTPUT_NAME).is_file():
        if average == 1:
            return [path]
        # Its run's earlier checkpoints lie beside it.
        path, step = path.resolve().parent.parent, step_of(path.resolve())
    steps = complete_steps(path)
    if not steps:
        raise CheckpointError(f"{path}: holds no complete checkpoint; name a run folder or a step_… folder")
    if step is not None and step not in steps:
        raise CheckpointError(f"{path}: has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    chosen = [saved for saved in steps if step is None or saved <= step][-average:]
    if len(chosen) < average:
        raise CheckpointError(
            f"{path}: has {len(chosen)} checkpoints up to step {chosen[-1]}, not {average}; lower --average, "
            "and keep more the next time (--train.keep_last)"
        )
    return [step_folder(path, saved) for saved in chosen]


def export(
    source: str | Path,
    output: str | Path,
    step: int | None = None,
    average: int = 1,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Exported:
    """Write the model of a run or checkpoint to the new folder `output`, or the mean of the last `average` checkpoints.

    Raises `CheckpointError` where a checkpoint is damaged or the written model is not the trained one; then
    nothing is left behind. `DataError` where `output` exists or cannot be written. Memory: the weights in fp32 once,
    or twice while they are read (docs/export.md).
    """
    checkpoints, output = find_checkpoints(Path(source), step, average), Path(output)
    if output.exists():
        raise DataError(f"{output}: exists already; name a new folder or remove it")
    records = [_read_records(checkpoint) for checkpoint in checkpoints]
    steps, last = [record.state.step for record in records], records[-1]
    with _new_folder(output) as temporary:
        num_parameters, probe = _write_model(checkpoints, last, temporary, max_shard_size)
        aliases = SavedWeights(checkpoints[-1]).aliases
        difference = check_exported(temporary, _expected(checkpoints), aliases, probe, exact=average == 1)
        if last.tokenizer.kind == "kmer":
            check_tokenizer(temporary, last.tokenizer)
        facts = provenance(checkpoints[-1], last.state, last.config, last.tokenizer, steps, difference)
        write_records(temporary, facts)
    return Exported(output, steps, num_parameters, difference)


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """`atomic_folder`, with one line for a disk that refuses a write."""
    try:
        with atomic_folder(output) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise DataError(f"{output}: cannot be written ({error}); free space or name another folder") from None


def _read_records(checkpoint: Path) -> _Records:
    """All that a checkpoint says of itself; `CheckpointError` where a record is damaged."""
    check_checkpoint(checkpoint)
    state, probe = read_state(checkpoint), load_reference_output(checkpoint / REFERENCE_OUTPUT_NAME)
    try:
        config = resolve(tomllib.loads((checkpoint / CONFIG_NAME).read_text()))
        tokenizer = TokenizerInfo(**read_json(checkpoint / TOKENIZER_NAME, error=CheckpointError))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: its records cannot be read ({error}); use another checkpoint") from None
    return _Records(state, config, tokenizer, probe)


def _expected(checkpoints: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """The weights to compare with, read anew and one at a time; a mean, in another way than `mean_weights`."""
    if len(checkpoints) > 1:
        return mean_weights_one_by_one(checkpoints)
    return read_weights(checkpoints[0], "comparing weights")


def _write_model(
    checkpoints: list[Path], last: _Records, folder: Path, max_shard_size: str
) -> tuple[int, ReferenceOutput]:
    """Write weights, configuration and tokenizer; returns the number of parameters and what the model must answer."""
    model = _trained_model(checkpoints, last)
    probe = last.probe if len(checkpoints) == 1 else _asked_again(model, last.probe)
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except ValueError as error:
        raise DataError(f"--max-shard-size {max_shard_size}: {error}") from None
    if last.tokenizer.kind == "kmer":
        length = last.config.model.max_positions
        KmerTokenizer(k=last.tokenizer.k, model_max_length=length).save_pretrained(folder)
    return model.num_parameters(), probe


def _trained_model(checkpoints: list[Path], last: _Records) -> PreTrainedModel:
    """The transformers model with the checkpoints' mean master weights, fp32, on the CPU."""
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
        raise CheckpointError(f"{checkpoint}: its weights do not fit its configuration ({reason})") from None
    model.tie_weights()
    return model.eval()


def _asked_again(model: PreTrainedModel, probe: ReferenceOutput) -> ReferenceOutput:
    """The probe with this model's answers, given as in training by the masked-only head, in fp32 on the CPU."""
    with torch.no_grad():
        logits = MaskedLM(model)(torch.from_numpy(probe.input_ids), torch.from_numpy(probe.positions))
    return dataclasses.replace(probe, logits=logits.numpy(), precision="fp32", device="cpu")
