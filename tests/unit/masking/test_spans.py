"""Centres, united spans and replacements: the pure functions and their edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.genome.kmer import MASK_ID, NUM_SPECIAL, vocab_size
from dnabert_rm.masking.spans import draw_centres, draw_spans, replace, span_reach, span_table, unite_spans
from dnabert_rm.utils import random


def masked_tokens(span: int, centre: int, num_tokens: int) -> list[int]:
    """Return the tokens that one centre masks."""
    centres = np.zeros((1, num_tokens), dtype=bool)
    centres[0, centre] = True
    return np.flatnonzero(unite_spans(centres, np.array([span]))[0]).tolist()


@pytest.mark.parametrize(
    ("span", "before", "after"), [(6, 2, 3), (5, 2, 2), (4, 1, 2), (3, 1, 1), (1, 0, 0), (2, 0, 1), (14, 6, 7)]
)
def test_a_centre_masks_the_tokens_of_the_paper_and_dnabert(span, before, after):
    """DNABERT: k = 6 is -2 … +3, k = 5 -2 … +2, k = 4 -1 … +2, k = 3 -1 … +1."""
    assert masked_tokens(span, 50, 100) == list(range(50 - before, 50 + after + 1))
    assert [int(reach[0]) for reach in span_reach(np.array([span]))] == [before, after]


def test_spans_are_cut_at_the_ends():
    assert masked_tokens(6, 0, 10) == [0, 1, 2, 3]
    assert masked_tokens(6, 9, 10) == [7, 8, 9]
    assert masked_tokens(14, 0, 3) == [0, 1, 2]
    assert masked_tokens(6, 0, 1) == [0]


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5), st.data())
def test_spans_of_several_windows_are_united(centres, data):
    centres = np.array(centres)
    span = np.array(data.draw(st.lists(st.integers(1, 9), min_size=len(centres), max_size=len(centres))))
    expected = np.zeros_like(centres)
    for row, column in np.argwhere(centres):
        for token in range(column - -(-span[row] // 2) + 1, column + span[row] // 2 + 1):
            if 0 <= token < 7:
                expected[row, token] = True
    assert (unite_spans(centres, span) == expected).all()


@pytest.mark.parametrize("rate", [0.025, 0.15, 0.5])
def test_centres_are_independent_and_have_their_rate(rate):
    centres = draw_centres(random.fold(random.key(0, "test"), np.arange(4000)), 511, np.full(4000, rate))
    assert centres.shape == (4000, 511)
    size = centres.size
    assert centres.mean() == pytest.approx(rate, abs=4.5 * np.sqrt(rate * (1 - rate) / size))
    for lag in (1, 2, 3):  # neighbours share a hash, but must be independent
        both = (centres[:, lag:] & centres[:, :-lag]).mean()
        assert both == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 / size))
    assert abs(centres.mean(axis=0) - rate).max() < 5.5 * np.sqrt(rate / 4000)


def test_every_window_has_its_own_rate():
    centres = draw_centres(np.arange(3, dtype=np.uint64), 2000, np.array([2.0**-40, 1.0, 0.5]))
    assert centres.mean(axis=1)[:2].tolist() == [0, 1]
    assert 0.4 < centres[2].mean() < 0.6


def test_spans_are_uniform_over_the_windows_own_list():
    table, counts = span_table([(6,), (6, 8, 10)])
    row = np.arange(60_000) % 2
    span = draw_spans(random.fold(random.key(0, "test"), np.arange(60_000)), table, counts, row)
    assert set(span[row == 0]) == {6}
    found = np.bincount(span[row == 1], minlength=11)[[6, 8, 10]]
    assert found.sum() == 30_000
    assert abs(found - 10_000).max() < 400


def replaced(num_windows: int, masked: np.ndarray, replacement: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and replacements for windows with the same mask; no random k-mer can equal a target."""
    rows, columns = np.nonzero(np.broadcast_to(masked, (num_windows, len(masked))))
    targets = np.full(len(rows), 10**6)
    keys = random.fold(random.key(0, "test"), np.arange(num_windows))
    return targets, replace(targets, rows, columns, keys, size, replacement)


@pytest.mark.parametrize("replacement", ["token", "span"])
@pytest.mark.parametrize("k", [3, 6, 8])
def test_eighty_ten_ten(replacement, k):
    size = vocab_size(k)
    targets, found = replaced(6000, np.array([1, 1, 0, 1, 1, 1, 0, 0, 1] * 4, dtype=bool), replacement, size)
    shares = [(found == MASK_ID).mean(), (found == targets).mean()]
    random_ids = found[(found != MASK_ID) & (found != targets)]
    # All tokens of a span have one kind, so the spread is that of spans of up to five tokens.
    assert [*shares, len(random_ids) / len(found)] == pytest.approx([0.8, 0.1, 0.1], abs=0.006)
    assert random_ids.min() >= NUM_SPECIAL
    assert random_ids.max() < size
    counts = np.bincount(random_ids - NUM_SPECIAL, minlength=4**k)
    expected = len(random_ids) / 4**k
    assert ((counts - expected) ** 2 / expected).sum() < 4**k + 5 * np.sqrt(2 * 4**k)


def test_one_choice_per_span_or_per_token():
    masked = np.array([1, 1, 1, 0, 1, 1, 0, 1], dtype=bool)
    spans = [(0, 3), (3, 5), (5, 6)]  # in the list of masked tokens of a window
    for replacement in ("span", "token"):
        targets, found = replaced(3000, masked, replacement, vocab_size(6))
        kind = np.where(found == MASK_ID, 0, np.where(found == targets, 1, 2)).reshape(3000, 6)
        alike = [(kind[:, first:last] == kind[:, first : first + 1]).all(axis=1).mean() for first, last in spans]
        if replacement == "span":
            assert alike == [1, 1, 1]
            assert (kind[:, 0] != kind[:, 3]).any()
        else:
            assert alike[0] == pytest.approx(0.8**3 + 2 * 0.1**3, abs=0.05)


def test_a_span_ends_with_its_window():
    """Masked tokens at the end of one window and the start of the next are two spans."""
    rows, columns = np.array([0, 0, 1, 1]), np.array([3, 4, 5, 6])
    kinds = set()
    for number in range(200):
        keys = random.fold(random.key(number, "test"), np.arange(2))
        found = replace(np.full(4, 10**6), rows, columns, keys, vocab_size(6), "span")
        kinds.add((found[1] == MASK_ID, found[2] == MASK_ID))
    assert len(kinds) == 4


def test_no_masked_token_means_no_replacement():
    empty = np.zeros(0, dtype=np.int64)
    for replacement in ("token", "span"):
        assert replace(empty, empty, empty, np.zeros(2, np.uint64), vocab_size(6), replacement).shape == (0,)
