"""Build transformers models from the `[model]` configuration, with seeded random weights or pretrained ones."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from dnabert_rm.config import ModelConfig
from dnabert_rm.genome.kmer import CLS_ID, PAD_ID, SEP_ID
from dnabert_rm.model.flops import MAX_GLOBAL_POSITIONS
from dnabert_rm.model.kernels import compile_layers, transformers_attention
from dnabert_rm.model.pretrained import model_fields
from dnabert_rm.utils.errors import RankReadError

DROPOUTS = {
    "bert": (("hidden_dropout_prob",), "attention_probs_dropout_prob"),
    "modernbert": (("embedding_dropout", "mlp_dropout"), "attention_dropout"),
}
"""Names of each architecture's dropout settings in transformers, of hidden states and of attention. In a `modernbert`,
that of attention is also the dropout of the attention's output."""


def architecture_of(model: ModelConfig, vocab_size: int, checkpoint: Path | None = None) -> PreTrainedConfig:
    """Return the transformers configuration of a model.

    The configuration comes from the folder `checkpoint` or, if `checkpoint` is None, from the folder `model.init_from`.
    If neither folder is given, the configuration is made from the sizes in `model`.
    """
    if checkpoint or model.init_from:
        return pretrained_config(str(checkpoint or model.init_from), model.dropout, model.dropout_of_attention)
    return transformers_config(
        architecture=model.architecture,
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_positions=model.max_positions,
        dropout=model.dropout,
        attention_dropout=model.dropout_of_attention,
        rope_period=model.rope_period,
    )


def transformers_config(
    *,
    architecture: str,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_positions: int,
    dropout: float,
    attention_dropout: float | None = None,
    rope_period: float = 0.0,
) -> PreTrainedConfig:
    """Return the transformers configuration of a model. `config.ModelConfig` describes the arguments.

    The default of `attention_dropout` is `dropout`.
    """
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
        "pad_token_id": PAD_ID,
    }
    of_attention = dropout if attention_dropout is None else attention_dropout
    dropouts: dict[str, Any] = dropout_settings(architecture, dropout, of_attention)
    if architecture == "bert":
        return BertConfig(**common, **dropouts)
    assert architecture == "modernbert", architecture
    common |= {"bos_token_id": CLS_ID, "cls_token_id": CLS_ID, "eos_token_id": SEP_ID, "sep_token_id": SEP_ID}
    if max_positions <= MAX_GLOBAL_POSITIONS:
        common["layer_types"] = ["full_attention"] * num_layers
        # transformers' default theta for such layers, 160,000, is meant for 8,192 positions.
        common["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    # Pretraining does not train [CLS], so a classifier averages over the tokens.
    config = ModernBertConfig(**common, **dropouts, classifier_pooling="mean")
    if rope_period:
        # The fastest frequency is 1 radian per token, a period of 2π tokens. This factor divides all frequencies.
        kinds_of_layers: Any = config.rope_parameters
        for parameters in kinds_of_layers.values():
            parameters.update(rope_type="linear", factor=rope_period / (2 * math.pi))
    return config


def dropout_settings(architecture: str, dropout: float, attention_dropout: float) -> dict[str, float]:
    """Return transformers' dropout settings of an architecture."""
    of_hidden, of_attention = DROPOUTS[architecture]
    return {**dict.fromkeys(of_hidden, dropout), of_attention: attention_dropout}


def pretrained_config(folder: str, dropout: float, attention_dropout: float) -> PreTrainedConfig:
    """Return the transformers configuration of the model in `folder`, with the given dropout rates."""
    # AutoConfig fails here: DNABERT's config.json has no model_type.
    kinds: dict[str, Any] = {"bert": BertConfig, "modernbert": ModernBertConfig}
    config = kinds[model_fields(folder)["architecture"]].from_pretrained(folder, local_files_only=True)
    for name, value in dropout_settings(config.model_type, dropout, attention_dropout).items():
        setattr(config, name, value)
    return config


def build_model(
    config: PreTrainedConfig,
    seed: int,
    attention: str = "sdpa",
    init_from: str = "",
) -> PreTrainedModel:
    """Return a masked language model in fp32 with random weights or, if `init_from` is set, weights from that folder.

    Random weights depend on `config` and `seed` only. Torch's global random state is restored afterwards. If the model
    in `init_from` has no masked-language-model head, the head gets random weights, and a warning is printed.

    Raises `RankReadError` if `init_from` can't be loaded or lacks encoder weights.
    """
    implementation = transformers_attention(attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if init_from:
            return _pretrained(init_from, config, implementation)
        return AutoModelForMaskedLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)


def _pretrained(folder: str, config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    try:
        model, report = AutoModelForMaskedLM.from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RankReadError(f"{folder}: its weights cannot be loaded ({reason}); use another folder") from None
    encoder = f"{model.base_model_prefix}."
    missing = sorted(report["missing_keys"])
    if in_encoder := [name for name in missing if name.startswith(encoder)]:
        raise RankReadError(
            f"{folder}: lacks {len(in_encoder)} encoder weights, such as {in_encoder[0]}; use another folder"
        )
    if missing:
        print(
            f"{folder}: has no masked-language-model head ({missing[0]} …); the head starts with random weights",
            file=sys.stderr,
        )
    return model.train()  # from_pretrained returns it for evaluation, without dropout


def encoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the layers of the encoder, first to last."""
    encoder: Any = model.base_model
    return encoder.encoder.layer if model.config.model_type == "bert" else encoder.layers


def prepare_layers(model: PreTrainedModel, *, checkpointing: bool, compiled: bool) -> None:
    """Enable activation checkpointing, torch.compile or both for the layers of `model`, in place.

    The head is not compiled, because the number of masked positions differs from batch to batch.
    """
    if checkpointing:
        # Prefer the newer name; newer versions of transformers warn about the older one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if compiled:
        compile_layers(encoder_layers(model), checkpointing=checkpointing)
