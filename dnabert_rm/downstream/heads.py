"""Pretrained encoders with a new head: loading that refuses what it would otherwise make up by chance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, set_seed

from dnabert_rm.errors import CheckpointError
from dnabert_rm.tokenizer import KmerTokenizer

_DROPOUT_FIELDS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob",  # bert
    "embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout",  # modernbert
)  # fmt: skip


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of an exported model; `CheckpointError` where there is none."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; name a folder that `dnabert-rm export` has written")
    with _as_checkpoint_error(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder: Path, config: PreTrainedConfig, overlapping: bool = True) -> KmerTokenizer:
    """The k-mer tokenizer of a model's folder, for overlapping or non-overlapping tokens."""
    with _as_checkpoint_error(folder):
        tokenizer = KmerTokenizer.from_pretrained(folder, local_files_only=True, overlapping=overlapping)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: vocab.txt has {tokenizer.vocab_size} tokens, but the model embeds {config.vocab_size};"
            " put the vocabulary there that it was pretrained with"
        )
    return tokenizer


def load_classifier(
    folder: Path, config: PreTrainedConfig, classes: Sequence[str], dropout: float, seed: int, from_scratch: bool
) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier in fp32 on a pretrained encoder, and the names of the tensors that are new.

    `from_scratch` leaves all weights random: the same architecture as a control. The new tensors
    are drawn from `seed`. `CheckpointError` where a tensor of the encoder is missing, left over or
    of another shape; a pooler and a classification head may be new.
    """
    for name in _DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    set_seed(seed)
    with quiet_transformers(), _as_checkpoint_error(folder):
        if from_scratch:
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
            return model, list(model.state_dict())
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, _new_tensors(folder, model, report)


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
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Turn the libraries' errors about a model's folder into one line for the user."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: not a model that transformers can load ({reason})") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
