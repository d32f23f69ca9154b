"""Initial embeddings as sums over bases."""

from __future__ import annotations

import torch

from dnabert_rm.genome.kmer import kmer_codes, vocab_size
from dnabert_rm.model.embeddings import base_sum_embeddings, set_base_sum_embeddings


def test_the_embedding_of_a_kmer_is_the_sum_of_its_bases_vectors() -> None:
    """So two k-mers that differ in one base differ by the same vector, whatever their other bases."""
    rows = base_sum_embeddings(4, 32, std=0.02, seed=0)
    codes = torch.from_numpy(kmer_codes(torch.arange(5, vocab_size(4)).numpy(), 4)).long()
    number = (codes * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    assert torch.equal(number, torch.arange(256))
    for place, step in enumerate((64, 16, 4, 1)):
        first = rows[codes[:, place] == 0]
        for base in (1, 2, 3):
            difference = rows[codes[:, place] == base] - first
            torch.testing.assert_close(difference, difference[:1].expand_as(difference))
            assert torch.equal(number[codes[:, place] == base], number[codes[:, place] == 0] + base * step)


def test_embeddings_have_the_asked_spread_and_depend_on_the_seed_only() -> None:
    rows = base_sum_embeddings(6, 128, std=0.02, seed=1)
    torch.testing.assert_close(rows.std(), torch.tensor(0.02), rtol=0.1, atol=0)
    torch.rand(3)
    assert torch.equal(rows, base_sum_embeddings(6, 128, std=0.02, seed=1))
    assert not torch.equal(rows, base_sum_embeddings(6, 128, std=0.02, seed=2))


def test_special_tokens_and_extra_rows_stay() -> None:
    weight = torch.full((vocab_size(3) + 3, 8), 7.0)
    set_base_sum_embeddings(weight, 3, std=0.02, seed=0)
    assert (weight[:5] == 7).all() and (weight[-3:] == 7).all() and (weight[5:-3].abs() < 1).all()
