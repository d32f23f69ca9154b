"""Structured initial weights: embeddings as sums over bases, and attention to near tokens."""

from __future__ import annotations

import pytest
import torch

from dnabert_rm.genome.kmer import kmer_codes, vocab_size
from dnabert_rm.model.build import build_model, encoder_layers, transformers_config
from dnabert_rm.model.initial_weights import base_sum_embeddings, set_structured_weights, sinusoids

SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 40}


def test_the_embedding_of_a_kmer_is_the_sum_of_its_bases_vectors() -> None:
    """So two k-mers that differ in one base differ by the same vector, whatever their other bases are."""
    rows = base_sum_embeddings(4, 32, std=0.02, seed=0)
    codes = torch.from_numpy(kmer_codes(torch.arange(5, vocab_size(4)).numpy(), 4)).long()
    for place in range(4):
        others = [other for other in range(4) if other != place]
        for base in (1, 2, 3):
            first, second = rows[codes[:, place] == 0], rows[codes[:, place] == base]
            assert torch.equal(codes[codes[:, place] == 0][:, others], codes[codes[:, place] == base][:, others])
            difference = second - first
            torch.testing.assert_close(difference, difference[:1].expand_as(difference))


def test_embeddings_have_the_asked_spread_and_depend_on_the_seed_only() -> None:
    rows = base_sum_embeddings(6, 128, std=0.02, seed=1)
    torch.testing.assert_close(rows.std(), torch.tensor(0.02), rtol=0.1, atol=0)
    torch.rand(3)
    assert torch.equal(rows, base_sum_embeddings(6, 128, std=0.02, seed=1))
    assert not torch.equal(rows, base_sum_embeddings(6, 128, std=0.02, seed=2))


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_special_tokens_and_all_other_weights_stay(architecture: str) -> None:
    config = transformers_config(architecture=architecture, vocab_size=vocab_size(3), dropout=0.0, **SIZES)
    before, model = build_model(config, seed=0), build_model(config, seed=0)
    set_structured_weights(model, 3, seed=0)
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[:5], before.get_input_embeddings().weight[:5])
    assert torch.equal(embeddings[5:], base_sum_embeddings(3, 64, 0.02, seed=0))
    assert model.get_output_embeddings().weight is embeddings
    assert len(changed) == (1 if architecture == "modernbert" else 6), changed


def test_tokens_of_a_bert_attend_to_near_tokens_in_every_layer_and_head() -> None:
    config = transformers_config(architecture="bert", vocab_size=vocab_size(6), dropout=0.0, **SIZES)
    ids = torch.randint(5, vocab_size(6), (64, 40), generator=torch.Generator().manual_seed(0))
    distance = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    for structured in (False, True):
        model = build_model(config, seed=0, attention="eager").eval()
        if structured:
            set_structured_weights(model, 6, seed=0)
        with torch.no_grad():
            attentions = model(input_ids=ids, output_attentions=True).attentions
        assert len(attentions) == len(encoder_layers(model))
        for weights in attentions:
            by_head = weights.mean(dim=0)
            near, far = by_head[:, (distance > 0) & (distance <= 3)], by_head[:, distance > 12]
            ratio = near.mean(dim=1) / far.mean(dim=1)
            assert (ratio > 1.2).all() if structured else (ratio < 1.1).all(), ratio


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoids(50, 8)
    assert table[0].tolist() == [0.0, 1.0] * 4
    torch.testing.assert_close(table[:, 0], torch.arange(50).sin())
    # Products depend on the distance only.
    products = table @ table.T
    torch.testing.assert_close(products[3, 7], products[40, 44])
