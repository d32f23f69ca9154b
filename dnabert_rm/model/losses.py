"""Loss over the bases of masked k-mers, and the probability of each base that a model's logits imply.

Shapes: M masked tokens, V = 5 + 4^k tokens in the vocabulary, k bases per token.

Source: the factorised nucleotide loss of GENERator-v2 and Carbon, here for overlapping k-mers as well.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from dnabert_rm.genome.kmer import NUM_SPECIAL, vocab_size

Loss = Literal["token", "base", "both", "base-then-token"]
NUM_BASES = 4


def base_loss_share(loss: str, switch: float, step: int, total_steps: int) -> float:
    """Return the fraction of a step's training loss that is the loss over bases, from 0 to 1.

    Args:
        loss: "token" (0), "base" (1), "both" (0.5), or "base-then-token" (1 at first, 0 later).
        switch: Share of the steps after which "base-then-token" changes to the loss over tokens.
        step: Index of the step.
        total_steps: Number of steps in the run.
    """
    if loss == "base-then-token":
        return 1.0 if step < round(switch * total_steps) else 0.0
    return {"token": 0.0, "base": 1.0, "both": 0.5}[loss]


@cache
def base_indicator(k: int, device: torch.device) -> Tensor:
    """Return a matrix (4^k, 4k) of float32: 1 in column 4j + b if base j of the k-mer has code b, otherwise 0."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in a later training
        digits = torch.arange(NUM_BASES**k, device=device)[:, None] >> _shifts(k, device) & 3
        return one_hot(digits, NUM_BASES).flatten(1).float()


def base_codes_of_tokens(tokens: Tensor, k: int) -> Tensor:
    """Return the base codes of k-mer ids, (M,) → (M, k) int64. Special tokens and -100 give 0 in each column."""
    return (tokens - NUM_SPECIAL).clamp(min=0)[:, None] >> _shifts(k, tokens.device) & 3


def _shifts(k: int, device: torch.device) -> Tensor:
    return torch.arange(2 * (k - 1), -1, -2, device=device)


def base_probabilities(logits: Tensor, k: int) -> Tensor:
    """Return the probability of each base at each of the k places of each token, (M, V) → (M, k, 4).

    The probability of a base at a place is the sum over all k-mers that have the base there. The softmax is over the
    whole vocabulary, so the four probabilities of a place sum to 1 minus the probability of the special tokens.
    Half-precision logits are converted to float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # A padded vocabulary has more columns than tokens.
    probabilities = logits.softmax(dim=-1, dtype=dtype)[:, NUM_SPECIAL : vocab_size(k)]
    return (probabilities @ base_indicator(k, logits.device).to(dtype)).unflatten(1, (k, NUM_BASES))


def token_loss_sum(logits: Tensor, targets: Tensor, base_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy over tokens, summed over tokens, as a scalar in float32.

    Args:
        logits: (M, V) float32.
        targets: (M,) int64, the original tokens; -100 is ignored.
        base_weights: (M, k) float32, the weight of each base; None means 1. The weight of a token is the mean weight
            of its bases.
    """
    if base_weights is None:
        return cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return (cross_entropy(logits, targets, ignore_index=-100, reduction="none") * base_weights.mean(dim=1)).sum()


def base_loss_sum(logits: Tensor, targets: Tensor, k: int, base_weights: Tensor | None = None) -> Tensor:
    """Return the loss over bases, summed over tokens, as a scalar.

    The loss of a token is the sum, over its k places, of -log of the probability of the true base. For uniform logits
    it equals the cross-entropy over tokens: k · log 4 = log 4^k, apart from the special tokens.

    Args:
        logits: (M, V), of any float dtype.
        targets: (M,) int64, the original tokens; -100 is ignored.
        k: Bases per token.
        base_weights: (M, k) float32, the weight of each base; None means 1.
    """
    probabilities = base_probabilities(logits, k)
    true_bases = base_codes_of_tokens(targets, k)[..., None]
    # A probability below float32's smallest number would give an infinite loss.
    picked = probabilities.gather(2, true_bases)[..., 0].clamp(min=torch.finfo(torch.float32).tiny)
    weights = (targets >= NUM_SPECIAL).to(picked.dtype)[:, None]
    return -(picked.log() * (weights if base_weights is None else weights * base_weights)).sum()


def hidden_base_bits(logits: Tensor, hidden: Tensor, true_codes: Tensor, k: int) -> Tensor:
    """Return the bits of each hidden base: -log2 of the probability of the true base, (H,) float64.

    The probability of a base is the mean over the masked tokens that cover it. Guessing among four bases costs 2 bits.

    Args:
        logits: (M, V) for M masked tokens.
        hidden: (M, k) int64, the number of the hidden base at each place of each token, or H for a visible base.
        true_codes: (H,) int64, the codes of the hidden bases.
        k: Bases per token.
    """
    num_hidden = len(true_codes)
    probabilities = base_probabilities(logits, k).double()
    probabilities = probabilities / probabilities.sum(dim=2, keepdim=True)  # special tokens are not bases
    sums = probabilities.new_zeros(num_hidden + 1, NUM_BASES)
    sums.index_add_(0, hidden.flatten(), probabilities.flatten(0, 1))
    means = sums[:num_hidden] / sums[:num_hidden].sum(dim=1, keepdim=True)
    picked = means.gather(1, true_codes[:, None])[:, 0]
    return -picked.clamp(min=torch.finfo(torch.float32).tiny).log2()
