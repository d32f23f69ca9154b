"""LoRA through peft: small matrices that learn in place of the encoder's weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dnabert_rm.utils.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which peft knows a folder of adapters."""
_ATTENTION = {"bert": ["query", "key", "value"], "modernbert": ["Wqkv"]}
"""Linear layers that get an adapter, of each architecture."""


def with_adapters(model: PreTrainedModel, rank: int, dropout: float, base: Path) -> Any:
    """A `peft.PeftModel` around `model`, in which adapters of `rank` and the whole head learn.

    Adapters stand beside the attention's projections, scaled by 2 (alpha is twice the rank). `base` is noted as the
    folder of the pretrained model. `ConfigError` where peft is not installed or the architecture is not known.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise ConfigError("--lora: needs the package peft; install it with pip install peft") from None
    kind = model.config.model_type
    if kind not in _ATTENTION:
        raise ConfigError(f"--lora: knows {' and '.join(_ATTENTION)}, not {kind}; leave it out")
    config = LoraConfig(
        # With the classifier, which peft adds, what is not the encoder: it learns whole.
        modules_to_save=[name for name in ("pooler", "head") if _has(model, name)],
        task_type=TaskType.TOKEN_CLS if "TokenClassification" in type(model).__name__ else TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=_ATTENTION[kind],
    )
    model.name_or_path = str(base.resolve())  # what peft writes down as the base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will change
        return get_peft_model(model, config)


def _has(model: PreTrainedModel, name: str) -> bool:
    return any(path.split(".")[-1] == name for path, _ in model.named_modules())
