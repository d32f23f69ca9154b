"""The Markov line on DNA whose entropy is known: it can't beat it, and reaches it at the true order and above."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import AMBIGUOUS, base_codes
from dnabert_rm.genome.kmer_counts import composition_probabilities, count_kmers, kmer_cross_entropy
from dnabert_rm.genome.markov import (
    MarkovChain,
    fit_chain,
    hidden_base_bits,
    hidden_base_probabilities,
)
from dnabert_rm.utils.errors import DataError

TRUE_ORDER = 3
NUM_STRETCHES = 6000


def uniform_dna(num_bases: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 4, num_bases, dtype=np.uint8)


def stretch_starts(num_bases: int, n: int, num_stretches: int = NUM_STRETCHES) -> NDArray[np.int64]:
    """Return starts that are evenly spaced, at least n + 23 bases apart and 11 bases from the ends."""
    spacing = (num_bases - 40) // num_stretches
    assert spacing >= n + 23
    return 15 + spacing * np.arange(num_stretches)


def mean_and_error(bits: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of bits (S, n) and its standard error, with each stretch as one observation."""
    stretches = bits.mean(axis=1)
    return float(stretches.mean()), float(stretches.std(ddof=1) / len(stretches) ** 0.5)


@pytest.fixture(scope="module")
def uniform_chain() -> MarkovChain:
    return fit_chain(count_kmers([uniform_dna(1_000_000, seed=1)]), 11)


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("order", [0, 2, 5, 8, 11])
def test_no_order_predicts_uniform_dna(uniform_chain: MarkovChain, order: int, n: int) -> None:
    codes = uniform_dna(400_000, seed=2)
    starts = stretch_starts(len(codes), n)
    probabilities = hidden_base_probabilities(uniform_chain.of_order(order), codes, starts, n)
    mean, error = mean_and_error(hidden_base_bits(probabilities, codes, starts))
    assert mean > 2.0 - 4 * error
    assert mean < 2.02


@pytest.fixture(scope="module")
def transitions() -> NDArray[np.float64]:
    """A sharp matrix (64, 4) of order 3, not symmetric under the reverse complement."""
    return 0.98 * np.random.default_rng(3).dirichlet(np.full(4, 0.4), 4**TRUE_ORDER) + 0.005


def simulate(transitions: NDArray[np.float64], num_rows: int, num_bases: int, seed: int) -> NDArray[np.uint8]:
    """Return independent sequences (num_rows, num_bases) of the stationary chain."""
    rng = np.random.default_rng(seed)
    thresholds = transitions.cumsum(axis=1)[:, :3]
    context = rng.integers(0, len(transitions), num_rows)
    columns = []
    for _ in range(num_bases + 200):
        base = (rng.random(num_rows)[:, None] > thresholds[context]).sum(axis=1)
        context = (context * 4 + base) % len(transitions)
        columns.append(base.astype(np.uint8))
    return np.stack(columns[200:], axis=1)


@pytest.fixture(scope="module")
def fitted(transitions: NDArray[np.float64]) -> MarkovChain:
    return fit_chain(count_kmers(simulate(transitions, 1000, 3000, seed=4)), 11)


@pytest.fixture(scope="module")
def held_out(transitions: NDArray[np.float64]) -> NDArray[np.uint8]:
    rows = simulate(transitions, 200, 2000, seed=5)
    border = np.full((len(rows), 1), AMBIGUOUS, dtype=np.uint8)
    return np.concatenate([rows, border], axis=1).ravel()


def held_out_starts(n: int) -> NDArray[np.int64]:
    """Return 20 starts in each of the 200 sequences of 2,000 bases."""
    return (2001 * np.arange(200)[:, None] + 30 + 96 * np.arange(20)).ravel()


def true_posterior(
    transitions: NDArray[np.float64], codes: NDArray[np.uint8], starts: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Return the exact marginals (S, n, 4) as a sum over all 4^n strings, without the code under test."""
    hidden = np.array(list(np.ndindex(*[4] * n)))
    posterior = np.empty((len(starts), n, 4))
    for row, start in enumerate(starts):
        windows = np.tile(codes[start - TRUE_ORDER : start + n + TRUE_ORDER].astype(np.int64), (len(hidden), 1))
        windows[:, TRUE_ORDER : TRUE_ORDER + n] = hidden
        weights = np.ones(len(hidden))
        for place in range(TRUE_ORDER, windows.shape[1]):
            contexts = windows[:, place - TRUE_ORDER : place] @ 4 ** np.arange(TRUE_ORDER)[::-1]
            weights *= transitions[contexts, windows[:, place]]
        weights /= weights.sum()
        posterior[row] = [np.bincount(hidden[:, i], weights, minlength=4) for i in range(n)]
    return posterior


def entropy_given_both_sides(transitions: NDArray[np.float64], n: int) -> float:
    """Return the mean over i of H(hidden base i | 3 bases on both sides), in bits, from the stationary distribution."""
    stationary = np.full(4**TRUE_ORDER, 4.0**-TRUE_ORDER)
    for _ in range(2000):
        stationary = (stationary[:, None] * transitions).reshape(4, -1).sum(axis=0)
    joint = stationary
    for _ in range(n + TRUE_ORDER):
        contexts = joint.reshape(-1, 4**TRUE_ORDER)
        joint = (contexts[:, :, None] * transitions).ravel()
    joint = joint.reshape(4**TRUE_ORDER, *[4] * n, 4**TRUE_ORDER)
    places = range(1, n + 1)

    def entropy(probabilities: NDArray[np.float64]) -> float:
        return float(-(probabilities * np.log2(probabilities)).sum())

    both_sides = entropy(joint.sum(axis=tuple(places)))
    with_base = [entropy(joint.sum(axis=tuple(other for other in places if other != place))) for place in places]
    return float(np.mean(with_base)) - both_sides


@pytest.mark.parametrize("n", [1, 3, 5])
def test_the_line_reaches_the_entropy_of_a_simulated_chain(
    transitions: NDArray[np.float64], fitted: MarkovChain, held_out: NDArray[np.uint8], n: int
) -> None:
    starts = held_out_starts(n)
    true_bits = hidden_base_bits(true_posterior(transitions, held_out, starts, n), held_out, starts)
    entropy, error = mean_and_error(true_bits)
    assert abs(entropy - entropy_given_both_sides(transitions, n)) < 4 * error < 0.1
    lines = {}
    for order in (0, 2, 3, 5, 8, 11):
        probabilities = hidden_base_probabilities(fitted.of_order(order), held_out, starts, n)
        bits = hidden_base_bits(probabilities, held_out, starts)
        lines[order] = float(bits.mean())
        # Nothing beats the true posterior beyond the sampling error of the paired difference.
        difference, paired_error = mean_and_error(bits - true_bits)
        assert difference > -4 * paired_error
    for order in (3, 5, 8, 11):
        assert abs(lines[order] - entropy) < 0.005, lines
    assert lines[2] > entropy + 0.05 and lines[0] > lines[2]


@pytest.mark.parametrize("num_bases", [300, 5_000, 100_000])
def test_a_high_order_on_little_dna_is_not_much_worse_than_a_low_one(
    transitions: NDArray[np.float64], held_out: NDArray[np.uint8], num_bases: int
) -> None:
    rows = max(1, num_bases // 1000)
    chain = fit_chain(count_kmers(simulate(transitions, rows, num_bases // rows, seed=6), 9), 8)
    starts = held_out_starts(3)
    lines = []
    for order in (1, 2, 3, 5, 8):
        probabilities = hidden_base_probabilities(chain.of_order(order), held_out, starts, 3)
        lines.append(float(hidden_base_bits(probabilities, held_out, starts).mean()))
    assert lines[-1] < min(lines) + 0.03, lines


def test_hidden_and_distant_bases_do_not_change_the_answer(fitted: MarkovChain, held_out: NDArray[np.uint8]) -> None:
    codes, starts, n = held_out[:400].copy(), np.array([0, 50, 200, 395]), 5
    expected = hidden_base_probabilities(fitted, codes, starts, n)
    near = starts[:, None] + np.arange(-fitted.order, n + fitted.order)
    visible = np.setdiff1d(near, starts[:, None] + np.arange(n))
    changed = np.full_like(codes, AMBIGUOUS)
    changed[visible[(visible >= 0) & (visible < 400)]] = codes[visible[(visible >= 0) & (visible < 400)]]
    np.testing.assert_array_equal(hidden_base_probabilities(fitted, changed, starts, n), expected)


def test_segments_joined_by_an_ambiguous_base_are_as_if_alone(fitted: MarkovChain, held_out: NDArray[np.uint8]) -> None:
    segments, starts = [held_out[:30], held_out[100:107], held_out[300:340]], [4, 1, 33]
    joined = np.concatenate([np.append(segment, np.uint8(AMBIGUOUS)) for segment in segments])
    offsets = np.cumsum([0, *(len(segment) + 1 for segment in segments[:-1])])
    found = hidden_base_probabilities(fitted, joined, offsets + starts, 5)
    for row, segment in enumerate(segments):
        alone = hidden_base_probabilities(fitted, segment, np.array(starts[row : row + 1]), 5)
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-12)


def test_batches_do_not_change_the_answer(
    fitted: MarkovChain, held_out: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = np.arange(0, 300, 7)
    expected = hidden_base_probabilities(fitted.of_order(5), held_out, starts, 3)
    monkeypatch.setattr("dnabert_rm.genome.markov._BATCH_STATES", 256)
    found = hidden_base_probabilities(fitted.of_order(5), held_out, starts, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_stretches_have_no_probabilities(fitted: MarkovChain, held_out: NDArray[np.uint8]) -> None:
    assert hidden_base_probabilities(fitted, held_out, np.array([], dtype=np.int64), 3).shape == (0, 3, 4)


@pytest.mark.parametrize("start", [-1, 8])
def test_a_stretch_outside_the_sequence_is_refused(fitted: MarkovChain, start: int) -> None:
    with pytest.raises(AssertionError, match="outside the sequence"):
        hidden_base_probabilities(fitted, uniform_dna(10, seed=0), np.array([2, start]), 3)


def test_an_ambiguous_hidden_base_has_no_score(fitted: MarkovChain) -> None:
    codes, starts = base_codes("ACGTNACGT"), np.array([3])
    with pytest.raises(AssertionError, match="ambiguous"):
        hidden_base_bits(hidden_base_probabilities(fitted, codes, starts, 3), codes, starts)


def test_rows_of_the_tables_sum_to_one(fitted: MarkovChain) -> None:
    for order, table in enumerate(fitted.tables):
        assert table.shape == (4**order, 4) and table.dtype == np.float32
        np.testing.assert_allclose(table.sum(axis=1, dtype=np.float64), 1.0, atol=1e-6)


def test_a_genome_of_one_letter_gives_finite_scores() -> None:
    chain = fit_chain(count_kmers([np.zeros(30_000_000, dtype=np.uint8)], 9), 8)
    codes = np.zeros(50, dtype=np.uint8)
    rare = codes.copy()
    rare[30] = 1
    for n in (1, 5, 9):
        starts = np.array([20])
        assert (hidden_base_probabilities(chain, codes, starts, n)[..., 0] > 0.999).all()
        # Here every string has a base that was never seen after its context.
        probabilities = hidden_base_probabilities(chain, rare, starts, n)
        assert np.isfinite(hidden_base_bits(probabilities, rare, starts)).all()


def test_training_sequences_without_bases_are_named() -> None:
    with pytest.raises(DataError, match="no A, C, G or T"):
        fit_chain(count_kmers([base_codes("NNN"), base_codes("")], 3), 2)


def test_composition_is_the_smoothed_frequencies_and_the_chain_of_order_0() -> None:
    counts = count_kmers([base_codes("AAAAATTTCN")], 1)
    np.testing.assert_allclose(composition_probabilities(counts), [6 / 13, 4 / 13, 2 / 13, 1 / 13])
    counts = count_kmers([np.repeat(np.arange(4, dtype=np.uint8), [40_000, 30_000, 20_000, 10_000])], 1)
    answer = hidden_base_probabilities(fit_chain(counts, 0), uniform_dna(9, seed=0), np.array([4]), 2)
    np.testing.assert_allclose(answer[0], np.tile(composition_probabilities(counts), (2, 1)), atol=1e-3)


def test_kmers_of_uniform_dna_cost_k_times_ln_4() -> None:
    training, held_out = (count_kmers([uniform_dna(500_000, seed)], 6) for seed in (7, 8))
    assert kmer_cross_entropy(training, held_out, 6) == pytest.approx(6 * np.log(4), abs=0.01)


def test_held_out_sequences_shorter_than_a_kmer_are_named() -> None:
    counts = count_kmers([base_codes("ACGTNACGTN")], 6)
    with pytest.raises(DataError, match="hold out longer sequences"):
        kmer_cross_entropy(counts, counts, 6)
