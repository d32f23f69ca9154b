"""Load pretrained encoders with a new head.

transformers initializes missing weights at random and only logs a warning. Here, an encoder tensor that is missing,
unexpected or wrongly shaped raises `CheckpointError`. Only the head and a pooler may be newly initialized.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from dnabert_rm.finetune.lora import ADAPTER_CONFIG
from dnabert_rm.finetune.tasks import Task
from dnabert_rm.genome import kmer
from dnabert_rm.genome.vocabulary import vocabulary_files
from dnabert_rm.model.pretrained import check_model_folder, model_type_of
from dnabert_rm.tokenizer import BpeTokenizer, DnaTokenizer, KmerTokenizer
from dnabert_rm.tokenizer.bpe_tokenizer import is_bpe
from dnabert_rm.tokenizer.vocabulary_files import read_k
from dnabert_rm.utils.errors import CheckpointError, ConfigError
from dnabert_rm.utils.files import read_json
from dnabert_rm.utils.out_of_memory import is_out_of_memory

_DROPOUT_FIELDS = (
    # bert
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    # modernbert
    "embedding_dropout",
    "attention_dropout",
    "mlp_dropout",
    "classifier_dropout",
)


def load_config(folder: Path) -> PreTrainedConfig:
    """Load the configuration of an exported or stock model. Raise `CheckpointError` if it can't be loaded."""
    check_model_folder(folder)
    content = read_json(folder / "config.json", error=CheckpointError)
    # AutoConfig can't read DNABERT's config.json, which has no model_type.
    config_class: Any = BertConfig if model_type_of(content) == "bert" else AutoConfig
    with as_checkpoint_error(folder):
        return config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder: Path, config: PreTrainedConfig, overlapping: bool = True) -> DnaTokenizer:
    """Load a model's tokenizer. `overlapping` selects overlapping or non-overlapping k-mers.

    Raises `ConfigError` if `overlapping` is False but the model has BPE tokens.

    Raises `CheckpointError` if the vocabulary is neither BPE nor k-mers, or does not fit the model. With BPE, the model
    must have exactly one embedding per token. With k-mers, the model may have more embeddings than tokens, but fewer
    than a vocabulary of (k + 1)-mers needs.
    """
    tokenizer: DnaTokenizer
    files = vocabulary_files(folder)
    if is_bpe(folder):
        if not overlapping:
            raise ConfigError(
                f"--non-overlapping: applies to k-mers, but {folder} has BPE tokens; omit --non-overlapping"
            )
        tokenizer = BpeTokenizer(folder)
        largest = config.vocab_size
    else:
        if len({read_k(path) for path in files}) > 1:
            raise CheckpointError(f"{folder}: vocab.txt and tokenizer.json differ; remove the wrong file")
        with as_checkpoint_error(folder):
            kmers = KmerTokenizer.from_pretrained(folder, local_files_only=True, overlapping=overlapping)
        tokenizer = kmers
        largest = kmer.vocab_size(kmers.k + 1) - 1
    if not tokenizer.vocab_size <= config.vocab_size <= largest:
        name = next((path.name for path in files), "tokenizer_config.json")
        raise CheckpointError(
            f"{folder}: {name} has {tokenizer.vocab_size} tokens, but the model has {config.vocab_size} embeddings;"
            f" replace {name} with the {name} used for pretraining"
        )
    return tokenizer


def load_kmer_tokenizer(folder: Path, config: PreTrainedConfig, task: str) -> KmerTokenizer:
    """Load the tokenizer for a task that needs overlapping k-mers. Raise `CheckpointError` if the tokens are BPE."""
    tokenizer = load_tokenizer(folder, config)
    if not isinstance(tokenizer, KmerTokenizer):
        raise CheckpointError(f"{folder}: has BPE tokens, but {task} needs overlapping k-mers; choose another model")
    return tokenizer


def load_model(
    folder: Path, config: PreTrainedConfig, task: Task, dropout: float, seed: int, from_scratch: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Load a pretrained encoder in fp32, with a new head for `task`.

    `task` must come from `Task.fitted`. The head is a token classifier if the task is `per_base`, otherwise a sequence
    classifier. With `from_scratch`, no weights are loaded, and all weights are initialized at random. `seed` determines
    the values of all randomly initialized weights.

    Returns the model and the names of its newly initialized tensors. Raises `CheckpointError` if a tensor of the
    encoder is missing, unexpected or has the wrong shape.
    """
    for name in _DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {name: index for index, name in enumerate(task.labels)}
    config.problem_type = task.problem_type  # type: ignore[assignment]
    auto_class: Any = AutoModelForTokenClassification if task.per_base else AutoModelForSequenceClassification
    set_seed(seed)
    if from_scratch:
        with suppress_transformers_output(), as_checkpoint_error(folder):
            model = auto_class.from_config(config, dtype=torch.float32)
        return model, list(model.state_dict())
    loaded = load_weights(auto_class, folder, config)
    return loaded.model, _new_tensors(folder, loaded)


class LoadedModel(NamedTuple):
    """A model from `load_weights`, with the names of its missing, wrongly shaped and unexpected tensors."""

    model: PreTrainedModel
    missing: set[str]
    """Tensors that are in no file, which transformers initialized at random."""
    reshaped: set[str]
    """Tensors that have another shape in the files, which transformers initialized at random."""
    unexpected: set[str]
    """Tensors in the files that the model does not use."""


def load_weights(auto_class: Any, folder: Path, config: PreTrainedConfig) -> LoadedModel:
    """Load a model in fp32 from a local folder, without remote code.

    Missing, wrongly shaped and unexpected tensors raise no error, but are listed in the result. Raises
    `CheckpointError` if the files can't be read, or if the folder holds only LoRA adapters.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder}: holds only LoRA adapters; pass the model that the adapters were trained on")
    with suppress_transformers_output(), as_checkpoint_error(folder):
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    reshaped = {entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]}
    return LoadedModel(model, set(report["missing_keys"]), reshaped, set(report["unexpected_keys"]))


def freeze_encoder(model: PreTrainedModel) -> None:
    """Freeze the encoder. The head stays trainable, and so does the pooler if there is one."""
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = "pooler." in name


def _new_tensors(folder: Path, loaded: LoadedModel) -> list[str]:
    """Return the names of newly initialized tensors.

    Raises `CheckpointError` if an encoder tensor outside the pooler is missing, unexpected or wrongly shaped.
    """
    prefix = loaded.model.base_model_prefix
    encoder = f"{prefix}."
    # A fine-tuned model may be fine-tuned again for another number of classes, so its head may change shape.
    problems = {
        "lacks": loaded.missing,
        "has the wrong shape for": loaded.reshaped,
        "does not use": loaded.unexpected,
    }
    for problem, names in problems.items():
        wrong = sorted(name for name in names if name.startswith(encoder) and ".pooler." not in name)
        if wrong:
            raise CheckpointError(
                f"{folder}: {problem} {len(wrong)} tensors of the {prefix} encoder, such as {wrong[0]}"
                "; config.json and the weights don't match; export the model again"
            )
    return sorted(loaded.missing | loaded.reshaped)


@contextlib.contextmanager
def as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Convert library errors about a model's folder into a one-line `CheckpointError`."""
    try:
        yield
    except pickle.UnpicklingError as error:
        # torch's message is long, and recommends weights_only=False.
        raise CheckpointError(
            f"{folder}: the weights hold more than tensors, or are damaged; use another model, or safetensors"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{folder}: not a model that transformers can load ({reason}); check the folder, or export the model again"
        ) from error


@contextlib.contextmanager
def suppress_transformers_output() -> Iterator[None]:
    """Suppress transformers' notices and progress bars about loading and saving."""
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
