"""Pretrained encoders with a new head: loading that refuses what it would otherwise make up by chance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from dnabert_rm.finetune.lora import ADAPTER_CONFIG
from dnabert_rm.finetune.task_heads import Task
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.out_of_memory import is_out_of_memory

_DROPOUT_FIELDS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob",  # bert
    "embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout",  # modernbert
)  # fmt: skip


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of an exported model; `CheckpointError` where there is none."""
    check_model_folder(folder)
    with as_checkpoint_error(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder: Path, config: PreTrainedConfig, overlapping: bool = True) -> KmerTokenizer:
    """The k-mer tokenizer of a model's folder, for overlapping or non-overlapping tokens."""
    with as_checkpoint_error(folder):
        tokenizer = KmerTokenizer.from_pretrained(folder, local_files_only=True, overlapping=overlapping)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: vocab.txt has {tokenizer.vocab_size} tokens, but the model embeds {config.vocab_size};"
            " put the vocabulary there that it was pretrained with"
        )
    return tokenizer


def load_model(
    folder: Path, config: PreTrainedConfig, task: Task, dropout: float, seed: int, from_scratch: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """A pretrained encoder in fp32 under a fitted task's head, and the names of the tensors that are new.

    The head answers for a sequence, or for each token where the task is `per_base`. `from_scratch` leaves all weights
    random: the same architecture as a control. The new tensors are drawn from `seed`. `CheckpointError` where a tensor
    of the encoder is missing, left over or of another shape; a pooler and a classification head may be new.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder}: holds LoRA adapters alone; name the model that they were trained on")
    for name in _DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {name: number for number, name in enumerate(task.labels)}
    config.problem_type = task.problem_type  # type: ignore[assignment]
    kind: Any = AutoModelForTokenClassification if task.per_base else AutoModelForSequenceClassification
    set_seed(seed)
    with suppress_transformers_output(), as_checkpoint_error(folder):
        if from_scratch:
            model = kind.from_config(config, dtype=torch.float32)
            return model, list(model.state_dict())
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, _new_tensors(folder, model, report)


def freeze_encoder(model: PreTrainedModel) -> None:
    """Let nothing learn but the head and, where there is one, the pooler, which belongs to it."""
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = "pooler." in name


def _new_tensors(folder: Path, model: PreTrainedModel, report: dict[str, Any]) -> list[str]:
    """Tensors that the folder lacks, all of them outside the encoder, else `CheckpointError`."""
    encoder = f"{model.base_model_prefix}."
    # A fine-tuned model may be the start of another: its head has another number of classes.
    reshaped = {entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]}
    faults = {
        "lacks": report["missing_keys"],
        "has another shape of": reshaped,
        "has no place for": report["unexpected_keys"],
    }
    for fault, names in faults.items():
        wrong = sorted(name for name in names if name.startswith(encoder) and ".pooler." not in name)
        if wrong:
            raise CheckpointError(
                f"{folder}: {fault} {len(wrong)} tensors of the {model.base_model_prefix} encoder, {wrong[0]} first;"
                " config.json and the weights don't belong together: export the model again"
            )
    return sorted({*report["missing_keys"], *reshaped})


@contextlib.contextmanager
def as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Turn the libraries' errors about a model's folder into one line for the user."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: not a model that transformers can load ({reason})") from error


@contextlib.contextmanager
def suppress_transformers_output() -> Iterator[None]:
    """Keep transformers' notices and bars about loading and saving to itself; what matters we say in a line."""
    verbosity = transformers.logging.get_verbosity()
    had_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bars:
            transformers.logging.enable_progress_bar()
