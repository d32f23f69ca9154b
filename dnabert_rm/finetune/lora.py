"""LoRA adapters from peft: small low-rank matrices that are trained instead of the encoder's weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dnabert_rm.utils.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
"""File that marks a folder of peft adapters."""
_ATTENTION_LAYERS = {"bert": ["query", "key", "value"], "modernbert": ["Wqkv"]}
"""Names of the linear layers that get an adapter, for each `model_type`."""


def add_adapters(model: PreTrainedModel, rank: int, dropout: float, base: Path) -> Any:
    """Wrap `model` in a `peft.PeftModel` that trains only LoRA adapters, the head, and the pooler if there is one.

    The query, key and value projections get adapters of matrix rank `rank`, with an alpha of 2 * `rank`. `base` is the
    pretrained model's folder, which peft records in the adapters' configuration. Raises `ConfigError` if peft is not
    installed or the architecture is not supported.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise ConfigError("--lora: needs the package peft; install it with pip install peft") from None
    architecture = model.config.model_type
    if architecture not in _ATTENTION_LAYERS:
        raise ConfigError(f"--lora: supports {' and '.join(_ATTENTION_LAYERS)}, not {architecture}; remove --lora")
    config = LoraConfig(
        # All layers outside the encoder are trained in full; peft adds the classifier to this list.
        modules_to_save=[name for name in ("pooler", "head") if _has_module(model, name)],
        task_type=TaskType.TOKEN_CLS if "TokenClassification" in type(model).__name__ else TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=_ATTENTION_LAYERS[architecture],
    )
    model.name_or_path = str(base.resolve())  # peft saves this as the base model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated transformers name
        return get_peft_model(model, config)


def _has_module(model: PreTrainedModel, name: str) -> bool:
    return any(path.split(".")[-1] == name for path, _ in model.named_modules())
