"""Structured initial weights: k-mers that share bases have similar embeddings, and tokens attend to near tokens.

With transformers' own random weights a small model needs thousands of steps to learn both. docs/randommask.md has the
measurements.

Sources: sinusoidal positions from Vaswani et al., "Attention Is All You Need" (2017); keys that begin equal to the
queries from Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnabert_rm.genome.kmer import NUM_SPECIAL, vocab_size
from dnabert_rm.model.losses import NUM_BASES, base_indicator

LONGEST_PERIOD = 100.0
"""Ratio of the longest to the shortest period of the sinusoidal positions. Small, so only near positions are alike."""
POSITION_SCALE = 2.0
"""Standard deviation of the positions, relative to that of random embeddings."""
QUERY_SCALE = 0.9
"""Standard deviation of query and key weights, relative to 1 / sqrt(hidden size). Tokens then attend to near tokens."""

Gather = Callable[[Sequence[Tensor]], contextlib.AbstractContextManager[Any]]


def set_structured_weights(
    model: PreTrainedModel, k: int, seed: int, gather: Gather = lambda _: contextlib.nullcontext()
) -> None:
    """Overwrite part of a new model's weights in place.

    The embedding of a k-mer becomes the sum of k vectors, one for each base at its place. A "bert" model also gets
    sinusoidal positions, and keys that equal its queries, so that tokens attend to near tokens. A "modernbert" model
    has rotary positions and needs neither.

    Args:
        model: A model with random weights.
        k: Bases per token.
        seed: Seed of the random vectors.
        gather: Context manager that gathers partitioned weights (ZeRO-3).
    """
    std = float(model.config.initializer_range)
    embeddings: Any = model.get_input_embeddings()
    with gather([embeddings.weight]), torch.no_grad():
        _set_rows(embeddings.weight, base_sum_embeddings(k, embeddings.embedding_dim, std, seed), k)
    if model.config.model_type != "bert":
        return
    encoder: Any = model.base_model
    positions = encoder.embeddings.position_embeddings
    with gather([positions.weight]), torch.no_grad():
        table = sinusoids(positions.num_embeddings, positions.embedding_dim)
        positions.weight.copy_(table * (POSITION_SCALE * std / table.std()))
    for layer in encoder.encoder.layer:
        attention = layer.attention.self
        with gather([attention.query.weight, attention.key.weight]), torch.no_grad():
            attention.query.weight.mul_(QUERY_SCALE / embeddings.embedding_dim**0.5 / std)
            attention.key.weight.copy_(attention.query.weight)


def base_sum_embeddings(k: int, hidden_size: int, std: float, seed: int) -> Tensor:
    """Return initial embeddings of all k-mers, (4^k, H) float32 for hidden size H.

    There is one random vector for each base at each of the k places. The embedding of a k-mer is the sum of its k
    vectors, so k-mers that share bases are similar, and a linear map can read each base.

    Args:
        k: Bases per k-mer.
        hidden_size: H.
        std: Standard deviation of the embeddings' values.
        seed: Seed of the random vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(NUM_BASES * k, hidden_size, generator=generator) * (std / k**0.5)
    return base_indicator(k, torch.device("cpu")) @ vectors


def sinusoids(num_positions: int, hidden_size: int) -> Tensor:
    """Return sines and cosines of all positions, (P, H) float32 for P positions and an even hidden size H.

    Column 2i is the sine and column 2i + 1 the cosine of position / `LONGEST_PERIOD`^(2i / H).
    """
    frequencies = LONGEST_PERIOD ** (-torch.arange(0, hidden_size, 2) / hidden_size)
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :hidden_size]


def _set_rows(weight: Tensor, rows: Tensor, k: int) -> None:
    """Overwrite the k-mers' rows of an embedding matrix (V, H). The rows of special tokens stay."""
    assert weight.shape[0] >= vocab_size(k), f"{weight.shape[0]} embeddings are too few for {k}-mers"
    weight[NUM_SPECIAL : vocab_size(k)] = rows.to(weight)
