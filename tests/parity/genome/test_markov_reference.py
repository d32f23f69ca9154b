"""The Markov line against plain Python: counting words, leaving one out, and a sum over all 4^n hidden strings."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from dnabert_rm.genome.kmer import AMBIGUOUS, BASE_ORDER, base_codes
from dnabert_rm.genome.kmer_counts import count_kmers, kmer_cross_entropy
from dnabert_rm.genome.markov import (
    ALPHAS,
    MarkovChain,
    fit_chain,
    hidden_base_probabilities,
    leave_one_out_log_likelihoods,
)


def words(width: int) -> list[str]:
    """Return all k-mers of `width` bases in order of their numbers."""
    return ["".join(letters) for letters in itertools.product(BASE_ORDER, repeat=width)]


def slow_counts(sequences: list[str], width: int) -> Counter[str]:
    """Count the k-mers one at a time."""
    return Counter(
        word
        for sequence in sequences
        for word in (sequence[place : place + width] for place in range(len(sequence) - width + 1))
        if set(word) <= set("ACGT")
    )


def random_sequences(seed: int, num: int = 8, letters: str = "ACGTTAN") -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), size=rng.integers(0, 40))) for _ in range(num)]


@pytest.mark.parametrize("max_width", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk_bases", [1, 2, 7, 30, 10_000])
def test_counts_of_every_width_equal_counting_one_word_at_a_time(max_width: int, chunk_bases: int) -> None:
    for seed in range(6):
        sequences = [*random_sequences(seed), "", "N", "A", "ACGTA", "NACGNNACGTN"]
        counts = count_kmers((base_codes(sequence) for sequence in sequences), max_width, chunk_bases)
        assert sorted(counts) == list(range(1, max_width + 1))
        for width, found in counts.items():
            expected = slow_counts(sequences, width)
            assert dict(zip(words(width), found.tolist(), strict=True)) == {w: expected[w] for w in words(width)}


def slow_probability(counts: dict[int, Counter[str]], word: str, alphas: tuple[float, ...], left_out: int) -> float:
    """Return P(last base of `word` | the bases before it), with one occurrence of the word left out or none."""
    if not word:
        return 0.25
    lower = slow_probability(counts, word[1:], alphas, left_out)
    total = sum(counts[len(word)][word[:-1] + base] for base in BASE_ORDER)
    alpha = alphas[len(word) - 1]
    return (counts[len(word)][word] - left_out + alpha * lower) / (total - left_out + alpha)


@pytest.mark.parametrize("seed", range(4))
def test_tables_and_weights_equal_leaving_each_training_base_out(seed: int) -> None:
    order = 3
    sequences = random_sequences(seed, num=20, letters="ACGTTAAAN")
    counts = {width: slow_counts(sequences, width) for width in range(1, order + 2)}
    chain = fit_chain(count_kmers(map(base_codes, sequences), order + 1), order)
    for width in range(1, order + 2):
        likelihoods = {}
        for alpha in ALPHAS:
            weights = (*chain.alphas[: width - 1], alpha)
            likelihoods[alpha] = math.fsum(
                times * math.log(slow_probability(counts, word, weights, left_out=1))
                for word, times in counts[width].items()
            )
        assert chain.alphas[width - 1] == max(ALPHAS, key=likelihoods.__getitem__)
        for word, probability in zip(words(width), chain.tables[width - 1].ravel().tolist(), strict=True):
            assert math.isclose(probability, slow_probability(counts, word, chain.alphas, left_out=0), rel_tol=1e-5)


def test_leave_one_out_likelihoods_equal_a_sum_over_bases() -> None:
    following = np.random.default_rng(0).integers(0, 5, (16, 4))
    lower = np.random.default_rng(1).dirichlet(np.ones(4), 4).astype(np.float32)
    likelihoods = leave_one_out_log_likelihoods(following, lower)
    for alpha in ALPHAS:
        expected = math.fsum(
            times * math.log((times - 1 + alpha * float(lower[context % 4, base])) / (sum(row) - 1 + alpha))
            for context, row in enumerate(following.tolist())
            for base, times in enumerate(row)
            if times
        )
        assert math.isclose(likelihoods[alpha], expected, rel_tol=1e-6)


def random_chain(order: int, seed: int = 0) -> MarkovChain:
    """Return a chain whose orders have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    tables = tuple(rng.dirichlet(np.full(4, 0.5), 4**j).astype(np.float32) + 1e-3 for j in range(order + 1))
    return MarkovChain(tuple(table / table.sum(axis=1, keepdims=True) for table in tables), (1.0,) * (order + 1))


def slow_marginals(chain: MarkovChain, codes: list[int], start: int, n: int) -> list[list[float]]:
    """Return the marginals (n, 4) as a sum over all 4^n strings, each base from its own table lookup."""
    order = chain.order
    begin = start
    while begin > max(0, start - order) and codes[begin - 1] != AMBIGUOUS:
        begin -= 1
    end = start + n
    while end < min(len(codes), start + n + order) and codes[end] != AMBIGUOUS:
        end += 1
    marginals = [[0.0] * 4 for _ in range(n)]
    for hidden in itertools.product(range(4), repeat=n):
        run = [*codes[begin:start], *hidden, *codes[start + n : end]]
        weight = 1.0
        for place in range(start - begin, len(run)):
            context = run[max(0, place - order) : place]
            number = sum(code * 4**power for power, code in enumerate(reversed(context)))
            weight *= float(chain.tables[len(context)][number, run[place]])
        for i, base in enumerate(hidden):
            marginals[i][base] += weight
    return [[value / sum(row) for value in row] for row in marginals]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_marginals_equal_a_sum_over_all_strings(order: int, n: int) -> None:
    chain = random_chain(order)
    sequences = ["ACGTTGCAACTGATTACAGC", "N" + "ACGTT" + "N" + "GATTACA" + "NN" + "C", "ACGT", "T" * n]
    for sequence in sequences:
        codes = base_codes(sequence)
        starts = np.arange(len(codes) - n + 1)
        found = hidden_base_probabilities(chain, codes, starts, n)
        assert found.shape == (len(starts), n, 4) and found.dtype == np.float64
        for row, start in enumerate(starts.tolist()):
            np.testing.assert_allclose(found[row], slow_marginals(chain, codes.tolist(), start, n), rtol=1e-9)


@pytest.mark.parametrize("order", [5, 6])
def test_marginals_equal_a_sum_over_all_strings_for_wider_contexts(order: int) -> None:
    chain = random_chain(order)
    codes = np.random.default_rng(1).integers(0, 4, 24, dtype=np.uint8)
    for n in (2, 5):
        starts = np.array([0, 1, 3, 9, 17, 24 - n])
        found = hidden_base_probabilities(chain, codes, starts, n)
        for row, start in enumerate(starts.tolist()):
            np.testing.assert_allclose(found[row], slow_marginals(chain, codes.tolist(), start, n), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_the_cross_entropy_of_kmers_equals_a_sum_over_held_out_kmers(k: int) -> None:
    training, held_out = random_sequences(1), random_sequences(2)
    frequencies, asked = slow_counts(training, k), slow_counts(held_out, k)
    total = frequencies.total() + 4**k
    expected = -sum(times * math.log((frequencies[word] + 1) / total) for word, times in asked.items())
    found = kmer_cross_entropy(count_kmers(map(base_codes, training), 3), count_kmers(map(base_codes, held_out), 3), k)
    assert math.isclose(found, expected / asked.total(), rel_tol=1e-12)
