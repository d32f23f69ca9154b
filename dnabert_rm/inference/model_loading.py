"""Strict loading of models and of LoRA adapters: no tensor is initialized at random unless the caller allows it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from dnabert_rm.finetune.lora import ADAPTER_CONFIG
from dnabert_rm.finetune.pretrained_encoder import (
    as_checkpoint_error,
    load_config,
    load_weights,
    suppress_transformers_output,
)
from dnabert_rm.genome.vocabulary import vocabulary_files
from dnabert_rm.model.pretrained import NAME_EXPORTED, NAME_FINETUNED, check_model_folder
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_PREFIX = "base_model.model."
_ADAPTED_CLASSES = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}
"""Class of the adapted model, for each `task_type` of peft."""
_FIXES = {
    "AutoModelForSequenceClassification": NAME_FINETUNED,
    "AutoModelForTokenClassification": NAME_FINETUNED,
    "AutoModelForMaskedLM": "choose a pretrained model written by `dnabert-rm export`",
}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, or with LoRA adapters for the model in the folder `base`."""

    path: Path
    base: Path | None
    config: PreTrainedConfig

    @property
    def folders(self) -> list[Path]:
        """Return the folder, followed by that of the base model if there is one."""
        return [self.path] if self.base is None else [self.path, self.base]

    @property
    def tokenizer(self) -> Path:
        """Return the folder with the tokenizer: `base` if adapters were saved without a tokenizer, otherwise `path`."""
        return self.path if self.base is None or vocabulary_files(self.path) else self.base


def open_model_folder(path: Path, advice: str = NAME_EXPORTED) -> ModelFolder:
    """Read the configuration of a model or of LoRA adapters. Raise `CheckpointError` if `path` holds neither.

    The message of this error ends with `advice`, which tells the user what to do.
    """
    base = adapter_base(path)
    if base is None:
        check_model_folder(path, advice)
    config = load_config(path if base is None or (path / "config.json").is_file() else base)
    return ModelFolder(path, base, config)


def load_model(
    auto_class: Any, folder: Path, config: PreTrainedConfig, optional: str | None = None, adapted: Sequence[str] = ()
) -> PreTrainedModel:
    """Load a model in fp32 on the CPU, in evaluation mode.

    Raises `CheckpointError` if a tensor is missing or wrongly shaped, because transformers would initialize the
    tensor at random. The check ignores tensors in `adapted`, which LoRA adapters supply, and tensors whose name
    contains `optional`.
    """
    loaded = load_weights(auto_class, folder, config)
    missing = sorted((loaded.missing | loaded.reshaped) - set(adapted))
    missing = [name for name in missing if optional is None or optional not in name]
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {len(missing)} tensors of a {type(loaded.model).__name__}, such as {missing[0]};"
            f" {_FIXES.get(auto_class.__name__, 'export the model again')}"
        )
    return loaded.model.eval()


def load_encoder(folder: ModelFolder) -> PreTrainedModel:
    """Load the encoder of a pretrained or fine-tuned model in fp32 on the CPU, with any LoRA adapters merged.

    Do not use the pooler's output. Masked language models are saved without a pooler, so the loaded pooler may be
    random.
    """
    if folder.base is None:
        return load_model(AutoModel, folder.path, folder.config, optional="pooler.")
    task_type = read_json(folder.path / ADAPTER_CONFIG, error=CheckpointError).get("task_type")
    if task_type not in _ADAPTED_CLASSES:
        raise CheckpointError(
            f"{folder.path / ADAPTER_CONFIG}: task_type {task_type!r} is not one of {', '.join(_ADAPTED_CLASSES)};"
            " pass adapters that `dnabert-rm finetune` wrote"
        )
    config = folder.config
    with as_checkpoint_error(folder.path), safe_open(folder.path / ADAPTER_WEIGHTS, "np") as weights:
        head = f"{_ADAPTER_PREFIX}classifier.weight"
        if head in weights.keys():  # noqa: SIM118 (no dict)
            # Adapters may have been saved without a configuration, so the size of the head comes from its weights.
            config.num_labels = weights.get_slice(head).get_shape()[0]
    encoder: Any = load_adapted(_ADAPTED_CLASSES[task_type], folder.path, folder.base, config).base_model
    return encoder


def load_adapted(auto_class: Any, folder: Path, base: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the LoRA adapters in `folder` and merge them into the model in `base`.

    Raises `CheckpointError` if peft is not installed, if a tensor is in neither the base model nor the adapters, or if
    the adapters' weights don't match their configuration.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise CheckpointError(f"{folder}: holds LoRA adapters; install peft (pip install 'dnabert_rm[lora]')") from None
    with as_checkpoint_error(folder), safe_open(folder / ADAPTER_WEIGHTS, "np") as weights:
        saved = set(weights.keys())
    adapted = [name.removeprefix(_ADAPTER_PREFIX) for name in saved]
    model = load_model(auto_class, base, config, adapted=adapted)
    with suppress_transformers_output(), as_checkpoint_error(folder), warnings.catch_warnings():
        # peft only warns about a missing tensor and ignores an unexpected one. The check below reports both.
        warnings.simplefilter("ignore", UserWarning)
        with_adapters = PeftModel.from_pretrained(model, str(folder))
    if differing := sorted(saved ^ set(get_peft_model_state_dict(with_adapters, save_embedding_layers=False))):
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS}: {len(differing)} tensors do not match {ADAPTER_CONFIG}, such as"
            f" {differing[0]}; copy both files again, or fine-tune again"
        )
    merged: Any = with_adapters.merge_and_unload()
    return merged.eval()


def model_inputs(model: Path, *files: str | Path) -> list[str | Path]:
    """Return the paths that a command reads: `files`, `model`, and the base model if `model` holds LoRA adapters."""
    base = adapter_base(model)
    return [*files, model] if base is None else [*files, model, base]


def adapter_base(folder: Path) -> Path | None:
    """Return the base model's folder for the LoRA adapters in `folder`, or None if `folder` holds no adapters."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base_name = read_json(folder / ADAPTER_CONFIG, error=CheckpointError).get("base_model_name_or_path")
    for base in (Path(str(base_name)), folder / str(base_name)):
        if (base / "config.json").is_file():
            return base
    raise CheckpointError(
        f"{folder / ADAPTER_CONFIG}: base model {base_name!r} does not exist; fix base_model_name_or_path"
    )
