"""From `[model]` to transformers' configuration, and how it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from dnabert_rm.config import ModelConfig
from dnabert_rm.model.build import pretrained_config, transformers_config
from dnabert_rm.model.flops import num_parameters
from dnabert_rm.train.ds_config import zero_stage
from dnabert_rm.train.inputs import model_shape

PARTITIONED_FROM = 1_000_000_000
"""Parameters above which a rank should not hold the whole model while it is built: 4 GB in fp32."""


def architecture_of(model: ModelConfig, vocab_size: int, checkpoint: Path | None = None) -> PreTrainedConfig:
    """transformers' configuration: the checkpoint's, that of the folder `[model]` begins from, or one of its sizes."""
    if checkpoint or model.init_from:
        return pretrained_config(str(checkpoint or model.init_from), model.dropout)
    return transformers_config(
        architecture=model.architecture,
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_positions=model.max_positions,
        dropout=model.dropout,
    )


def is_built_partitioned(model: ModelConfig, vocab_size: int, settings: dict[str, Any]) -> bool:
    """Whether the model is partitioned over the ranks while it is built: as `model.build` says, under ZeRO-3 alone."""
    if model.build == "auto":
        return zero_stage(settings) == 3 and num_parameters(model_shape(model, vocab_size)) > PARTITIONED_FROM
    return model.build == "partitioned"
