"""Markov chains fitted on k-mer counts, and the probabilities that they give to hidden bases.

A chain of order o gives P(b | c), the probability of base b after a context c of o bases. It is fitted on counts of
k-mers, and each order is interpolated with the next lower one:

    P_o(b | c) = (count(c b) + alpha_o * P_{o-1}(b | c')) / (count(c) + alpha_o)

Here count(c b) is the number of times that b follows c, and count(c) is its sum over b. c' is c without its first base,
and P_{-1} is uniform. Each alpha_o maximises the leave-one-out likelihood of the training bases (Bell, Cleary, Witten:
Text Compression, 1990, on blending; Ney, Essen, Kneser, IEEE PAMI 17, 1995, on leaving one out).

The probabilities of hidden bases are exact marginals, given the visible bases on both sides. They come from the
forward-backward recursion (Rabiner, Proc. IEEE 77, 1989).

Shapes: S stretches, n hidden bases each, o the chain's order. Contexts are k-mer numbers in the base order of
`genome/kmer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import AMBIGUOUS
from dnabert_rm.genome.kmer_counts import KmerCounts
from dnabert_rm.utils.errors import DataError

MARKOV_ORDERS = (2, 5, 8, 11)
"""The orders to report; one fit of the highest serves all of them."""

ALPHAS = tuple(2.0**exponent for exponent in range(13))
"""Candidates for each alpha_o."""

_MIN_PROBABILITY = 1e-12
"""Lower bound of the tables. It keeps products over a stretch and its right side above the smallest float64."""
_BATCH_STATES = 1 << 19
"""Size of the largest array of `hidden_base_probabilities` in float64 numbers, 4 MiB."""

Tables = NDArray[np.float32]


@dataclass(frozen=True)
class MarkovChain:
    """A chain of order `order`, with the tables of all lower orders for bases that have fewer bases before them."""

    tables: tuple[Tables, ...]
    """Entry j: P_j(b | c), (4^j, 4) float32."""
    alphas: tuple[float, ...]
    """Entry j: the weight alpha_j of P_{j-1} in P_j."""

    @property
    def order(self) -> int:
        """Number of bases before a base that its probability depends on."""
        return len(self.tables) - 1

    def of_order(self, order: int) -> MarkovChain:
        """Return the chain of a lower order that was fitted on the same counts."""
        assert 0 <= order <= self.order, order
        return MarkovChain(self.tables[: order + 1], self.alphas[: order + 1])


def fit_chain(counts: KmerCounts, order: int) -> MarkovChain:
    """Fit a Markov chain of order `order`, which includes the chains of all lower orders.

    Args:
        counts: Counts of k-mers of 1 … `order + 1` bases, from `count_kmers`.

    Copies of a repeat count as independent evidence. So on a genome full of repeats, high orders may score worse than
    lower ones on hidden bases. Compare with the best of several orders.

    Raises `DataError` if nothing was counted.
    """
    if not counts[1].any():
        raise DataError("the training sequences have no A, C, G or T to fit a Markov chain on; check the genome")
    lower = left_out_lower = np.full((1, 4), 0.25, dtype=np.float32)
    tables, alphas = [], []
    for width in range(1, order + 2):
        following = counts[width].reshape(-1, 4)
        # Each base is left out of the lower orders too. Otherwise they would look too good, and alpha be too large.
        alpha = max(ALPHAS, key=leave_one_out_log_likelihoods(following, left_out_lower).__getitem__)
        left_out_lower = _interpolate(following, left_out_lower, alpha, leave_out=1)
        lower = _interpolate(following, lower, alpha)
        tables.append(lower)
        alphas.append(alpha)
    return MarkovChain(tuple(tables), tuple(alphas))


def leave_one_out_log_likelihoods(following: NDArray[np.int64], lower: Tables) -> dict[float, float]:
    """Return alpha → log-likelihood of the training bases, in nats, each predicted from all others.

    Args:
        following: Counts of each base after each context of o bases, (4^o, 4).
        lower: Leave-one-out probability of each base after each context of o - 1 bases, (4^(o-1), 4).
    """
    totals, num_contexts = np.unique(following.sum(axis=1), return_counts=True)
    num_bases = totals * num_contexts
    seen = totals > 0
    sums = dict.fromkeys(ALPHAS, 0.0)
    for block in following.reshape(-1, *lower.shape):
        words = np.flatnonzero(block)
        times = block.ravel()[words]
        others = (times - 1).astype(np.float32)
        expected = lower.ravel()[words]
        for alpha in ALPHAS:
            sums[alpha] += float(times @ np.log(others + np.float32(alpha) * expected).astype(np.float64))
    for alpha in ALPHAS:
        sums[alpha] -= float(num_bases[seen] @ np.log(totals[seen] - 1 + alpha))
    return sums


def _interpolate(following: NDArray[np.int64], lower: Tables, alpha: float, leave_out: int = 0) -> Tables:
    """Return P_o(b | c), (4^o, 4), as if each base followed each context `leave_out` times less often.

    If `leave_out` is 1, entries of bases that never follow their context have no meaning.
    """
    result = np.empty(following.shape, dtype=np.float32)
    # One block of contexts per leading base; all of them share the contexts of the lower order.
    blocks = zip(following.reshape(-1, *lower.shape), result.reshape(-1, *lower.shape), strict=True)
    for counted, block in blocks:
        totals = np.maximum(counted.sum(axis=1, keepdims=True) - leave_out, 0) + alpha
        np.multiply(lower, np.float32(alpha), out=block)
        block += np.maximum(counted - leave_out, 0)
        block /= totals.astype(np.float32)
    return np.maximum(result, np.float32(_MIN_PROBABILITY), out=result)


def hidden_base_probabilities(
    chain: MarkovChain, codes: NDArray[np.uint8], starts: NDArray[np.integer], n: int
) -> NDArray[np.float64]:
    """Return P(hidden base | visible bases on both sides) under the chain, exactly, (S, n, 4).

    The codes of the hidden bases are not read. On each side, the o bases next to the stretch are visible.
    There are fewer at an end of `codes` or beside an ambiguous base. A base with fewer than o bases before it has the
    probability of the lower order. To score several segments in one call, join them with one ambiguous base.

    Other stretches are treated as visible, so the starts must be at least n + o bases apart.

    Time and memory per stretch grow as 4^min(n, o + 1). Stretches are processed in batches of bounded memory.

    Args:
        codes: Base codes (N,) uint8.
        starts: First hidden base of each stretch, (S,), each within 0 … N - n.
        n: Hidden bases per stretch, at least 1.
    """
    starts = np.asarray(starts, dtype=np.int64)
    assert n >= 1, n
    assert len(starts) == 0 or (starts.min() >= 0 and starts.max() <= len(codes) - n), "a stretch outside the sequence"
    steps = np.arange(chain.order)
    left, num_left = _visible_bases(codes, starts[:, None] - 1 - steps)
    right, num_right = _visible_bases(codes, starts[:, None] + n + steps)
    probabilities = np.empty((len(starts), n, 4))
    batch = max(1, _BATCH_STATES // 4 ** min(n, chain.order + 1))
    # Stretches with equally many visible bases on each side have arrays of equal shape.
    for group in np.unique(np.stack([num_left, num_right], axis=1), axis=0):
        members = np.flatnonzero((num_left == group[0]) & (num_right == group[1]))
        for begin in range(0, len(members), batch):
            rows = members[begin : begin + batch]
            probabilities[rows] = _marginals(chain, left[rows, : group[0]], right[rows, : group[1]], n)
    return probabilities


def _visible_bases(codes: NDArray[np.uint8], places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the codes at `places` (S, o), and the number of codes before an end or an ambiguous base, (S,).

    `places` begin with the base that is nearest to the stretch.
    """
    inside = (places >= 0) & (places < len(codes))
    bases = np.full(places.shape, AMBIGUOUS, dtype=np.int64)
    bases[inside] = codes[places[inside]]
    return bases, np.logical_and.accumulate(bases < AMBIGUOUS, axis=1).sum(axis=1)


def _marginals(chain: MarkovChain, left: NDArray[np.int64], right: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return the marginals of stretches with equally many visible bases on each side, (S, n, 4).

    The state before hidden base i is the last min(i, o) hidden bases. The state after all of them is the last min(n, o)
    hidden bases.

    Args:
        left: Codes before the stretches, (S, L), nearest first, L <= o.
        right: Codes after them, (S, R), nearest first, R <= o.
    """
    size, order = len(left), chain.order
    before = _left_numbers(left)

    def transitions(i: int) -> Tables:
        """Return P(hidden base i | state, left side), (S, states, 4)."""
        known = min(order, left.shape[1] + i)
        hidden = min(i, order)
        return chain.tables[known].reshape(4 ** (known - hidden), 4**hidden, 4)[before[known - hidden]]

    # forward[i] (S, states): P(state before hidden base i | left side).
    forward = [np.ones((size, 1))]
    for i in range(n - 1):
        joint = forward[i][:, :, None] * transitions(i)
        # With the context full, its first base drops out.
        forward.append(joint.reshape(size, -1, 4 ** min(i + 1, order)).sum(axis=1))
    # backward (S, states): P(right side | state), up to a factor.
    backward = _right_side_likelihood(chain, before, right, n)
    probabilities = np.empty((size, n, 4))
    for i in reversed(range(n)):
        onward = transitions(i)
        weighted = onward.reshape(size, -1, backward.shape[1]) * backward[:, None, :]
        weighted = weighted.reshape(onward.shape)
        probabilities[:, i] = (forward[i][:, None, :] @ weighted)[:, 0]
        # A product, because numpy's sum over a short last axis is six times slower.
        backward = weighted @ np.ones(4)
        backward /= backward.max(axis=1, keepdims=True)
    return probabilities / probabilities.sum(axis=2, keepdims=True)


def _right_side_likelihood(
    chain: MarkovChain, before: list[NDArray[np.int64]], right: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Return P(right side | last min(n, o) hidden bases, left side), (S, 4^min(n, o)).

    The context of right base j includes the last min(n, o - j) hidden bases. So the product is built from the far end,
    where few hidden bases matter, towards the stretch. `before` is the result of `_left_numbers`.
    """
    size, order = len(right), chain.order
    num_left = len(before) - 1
    words = _right_numbers(right)
    likelihood = np.ones((size, 1))
    for j in reversed(range(right.shape[1])):
        known = min(order, num_left + n + j)
        hidden = min(n, order - j)
        visible = known - j - hidden
        table = chain.tables[known].reshape(4**visible, 4**hidden, 4 ** (j + 1))
        factor = table[before[visible], :, words[j]]
        product = factor.reshape(size, -1, likelihood.shape[1]) * likelihood[:, None, :]
        likelihood = product.reshape(size, -1)
    # Without visible bases on the right, the likelihood is 1 for every state.
    return np.broadcast_to(likelihood, (size, 4 ** min(n, order)))


def _left_numbers(left: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return, for v = 0 … L, the k-mer number of the last v bases before each stretch, each (S,). `left` is (S, L)."""
    numbers = [np.zeros(len(left), dtype=np.int64)]
    for v in range(left.shape[1]):
        numbers.append(numbers[v] + left[:, v] * 4**v)
    return numbers


def _right_numbers(right: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return, for j = 0 … R - 1, the k-mer number of bases 0 … j after each stretch, each (S,). `right` is (S, R)."""
    numbers: list[NDArray[np.int64]] = []
    for j in range(right.shape[1]):
        numbers.append((numbers[-1] * 4 if numbers else 0) + right[:, j])
    return numbers


def hidden_base_bits(
    probabilities: NDArray[np.float64], codes: NDArray[np.uint8], starts: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return -log2 P(true base) of each hidden base, (S, n), for probabilities (S, n, 4).

    Guessing costs 2 bits. No hidden base may be ambiguous.
    """
    places = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(probabilities.shape[1])
    truth = codes[places]
    assert (truth < AMBIGUOUS).all(), "a hidden base is ambiguous"
    return -np.log2(np.take_along_axis(probabilities, truth[:, :, None].astype(np.intp), axis=2)[:, :, 0])
