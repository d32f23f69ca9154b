"""Initial embeddings of k-mers as sums over their bases."""

from __future__ import annotations

import torch
from torch import Tensor

from dnabert_rm.genome.kmer import NUM_SPECIAL, vocab_size
from dnabert_rm.model.losses import NUM_BASES, base_indicator


def base_sum_embeddings(k: int, hidden_size: int, std: float, seed: int) -> Tensor:
    """Return initial embeddings of all k-mers, (4^k, H) float32 for hidden size H, on the CPU.

    There is one random vector for each base at each of the k places. The embedding of a k-mer is the sum of its k
    vectors. So k-mers that share bases have similar embeddings from the first step on, and a linear map can read each
    base. With independent random embeddings, a model first has to learn the bases of each k-mer by itself.

    Args:
        k: Bases per k-mer.
        hidden_size: H.
        std: Standard deviation of the embeddings' values.
        seed: Seed of the random vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(NUM_BASES * k, hidden_size, generator=generator) * (std / k**0.5)
    return base_indicator(k, torch.device("cpu")) @ vectors


def set_base_sum_embeddings(weight: Tensor, k: int, std: float, seed: int) -> None:
    """Overwrite the k-mers' rows of an embedding matrix (V, H) in place. The rows of special tokens stay."""
    assert weight.shape[0] >= vocab_size(k), f"{weight.shape[0]} embeddings are too few for {k}-mers"
    rows = base_sum_embeddings(k, weight.shape[1], std, seed)
    with torch.no_grad():
        weight[NUM_SPECIAL : vocab_size(k)] = rows.to(weight)
