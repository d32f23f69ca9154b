"""The loss over bases against a sum over all k-mers in plain Python, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from dnabert_rm.genome.kmer import SPECIAL_TOKENS, vocab_size, vocabulary
from dnabert_rm.model.build import build_model, transformers_config
from dnabert_rm.model.losses import base_loss_share, base_loss_sum, base_probabilities, token_loss_sum
from dnabert_rm.model.mlm import MaskedLM

SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "max_positions": 40}


def logits_and_targets(k: int, num_tokens: int = 7, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random logits (M, V) and k-mer ids (M,)."""
    generator = torch.Generator().manual_seed(k)
    logits = scale * torch.randn(num_tokens, vocab_size(k), generator=generator)
    return logits, torch.randint(len(SPECIAL_TOKENS), vocab_size(k), (num_tokens,), generator=generator)


def slow_probability(logits: list[float], words: list[str], place: int, base: str) -> float:
    """Return the probability of a base at a place: a sum over all k-mers, one at a time."""
    total = math.fsum(math.exp(value) for value in logits)
    return math.fsum(
        math.exp(value) / total
        for value, word in zip(logits, words, strict=True)
        if word not in SPECIAL_TOKENS and word[place] == base
    )


@pytest.mark.parametrize("k", [3, 4, 6])
def test_probabilities_and_loss_equal_a_sum_over_all_kmers(k: int) -> None:
    words = vocabulary(k)
    logits, targets = logits_and_targets(k)
    weights = torch.rand(len(targets), k, generator=torch.Generator().manual_seed(1))
    probabilities = base_probabilities(logits, k)
    plain, weighted = 0.0, 0.0
    for row, target in enumerate(targets.tolist()):
        for place, base in enumerate(words[target]):
            expected = slow_probability(logits[row].tolist(), words, place, base)
            assert math.isclose(probabilities[row, place, "ATCG".index(base)], expected, rel_tol=1e-5)
            plain -= math.log(expected)
            weighted -= math.log(expected) * float(weights[row, place])
    assert math.isclose(base_loss_sum(logits, targets, k), plain, rel_tol=1e-6)
    assert math.isclose(base_loss_sum(logits, targets, k, weights), weighted, rel_tol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_equals_finite_differences(weighted: bool) -> None:
    logits, targets = logits_and_targets(3)
    weights = torch.rand(len(targets), 3, dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(
        lambda values: base_loss_sum(values, targets, 3, weights), logits.double().requires_grad_()
    )


@pytest.mark.parametrize("k", [3, 6])
def test_uniform_logits_give_the_cross_entropy_over_tokens(k: int) -> None:
    """Apart from the special tokens, which share the probability: their part is counted k times."""
    _, targets = logits_and_targets(k)
    logits = torch.zeros(len(targets), vocab_size(k))
    logits[:, : len(SPECIAL_TOKENS)] = -1e9
    token_loss, base_loss = token_loss_sum(logits, targets), base_loss_sum(logits, targets, k)
    assert math.isclose(token_loss, len(targets) * k * math.log(4), rel_tol=1e-6)
    assert math.isclose(base_loss, token_loss, rel_tol=1e-6)


def test_ignored_tokens_and_impossible_bases_leave_the_loss_finite() -> None:
    logits, targets = logits_and_targets(3)
    expected = base_loss_sum(logits[1:], targets[1:], 3)
    targets[0] = -100
    assert math.isclose(base_loss_sum(logits, targets, 3), expected, rel_tol=1e-6)
    logits[1] -= 1e4 * (torch.arange(vocab_size(3)) == targets[1])
    logits[1, len(SPECIAL_TOKENS) :] -= 1e4
    assert math.isfinite(base_loss_sum(logits, targets, 3))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_training_loss_and_its_gradient_do_not_depend_on_the_split_of_a_batch(share: float) -> None:
    """The sums of two halves are the sums of the whole; the loss is the mix of both losses of the same logits."""
    torch.manual_seed(0)
    k = 4
    config = transformers_config(architecture="modernbert", vocab_size=vocab_size(k), dropout=0.0, **SIZES)
    model = MaskedLM(build_model(config, seed=0), k)
    model.base_share = share
    ids = torch.randint(5, vocab_size(k), (4, 20))
    positions = torch.tensor([1, 2, 25, 27, 44, 61, 78, 79])
    targets = ids.flatten()[positions]

    loss, token_loss, _, _ = model(ids, positions, targets)
    loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    logits = model(ids, positions).detach()
    mixed = (1 - share) * token_loss_sum(logits, targets) + share * base_loss_sum(logits, targets, k)
    torch.testing.assert_close(loss.detach(), mixed, rtol=1e-6, atol=0)
    torch.testing.assert_close(token_loss, token_loss_sum(logits, targets), rtol=1e-6, atol=0)

    model.zero_grad()
    halves = [(ids[:2], positions[:4], targets[:4]), (ids[2:], positions[4:] - 40, targets[4:])]
    parts = [model(*half)[0] for half in halves]
    torch.stack(parts).sum().backward()
    torch.testing.assert_close(sum(parts).detach(), loss.detach(), rtol=1e-6, atol=0)
    split = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for mine, expected in zip(split, whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_base_then_token_changes_at_the_switch() -> None:
    shares = [base_loss_share("base-then-token", 0.3, step, 10) for step in range(10)]
    assert shares == [1.0] * 3 + [0.0] * 7
    assert [base_loss_share(loss, 0.3, 9, 10) for loss in ("token", "both", "base")] == [0.0, 0.5, 1.0]
