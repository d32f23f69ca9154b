"""From the `[model]` configuration to a transformers model with seeded random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, PreTrainedConfig, PreTrainedModel

from dnabert_rm.kmer import CLS_ID, PAD_ID, SEP_ID

MAX_GLOBAL_POSITIONS = 1024
"""Up to here every layer of a `modernbert` attends to the whole window; beyond, two layers in three slide."""


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
) -> PreTrainedConfig:
    """transformers' configuration of a model; sizes as in `config.ModelConfig`."""
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
        "pad_token_id": PAD_ID,
    }
    if architecture == "bert":
        return BertConfig(**common, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    assert architecture == "modernbert", architecture
    dropouts: dict[str, Any] = dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), dropout)
    common |= {"bos_token_id": CLS_ID, "cls_token_id": CLS_ID, "eos_token_id": SEP_ID, "sep_token_id": SEP_ID}
    if max_positions <= MAX_GLOBAL_POSITIONS:
        common["layer_types"] = ["full_attention"] * num_layers
        # transformers' base for such layers, 160,000, is meant for 8,192 positions.
        common["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    # Pretraining teaches [CLS] nothing, so a classifier averages over the tokens.
    return ModernBertConfig(**common, **dropouts, classifier_pooling="mean")


def build_model(config: PreTrainedConfig, seed: int, attention: str = "sdpa") -> PreTrainedModel:
    """A masked language model with random weights that depend on `config` and `seed` alone, in fp32.

    The global random state of torch is put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForMaskedLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
