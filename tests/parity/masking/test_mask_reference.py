"""RandomMask against a slow reference: plain Python loops over tokens, written from docs/randommask.md only.

The expected batch uses nothing of `dnabert_rm`: neither its random numbers, nor its schedule, nor its ids.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.masking.collator import RandomMaskCollator
from dnabert_rm.masking.schedule import make_schedule

PAD, UNK, CLS, SEP, MASK = range(5)
WORD = 2**64


def draw(parent: int, index: int) -> int:
    """Return 64 random bits of a key and an index: SplitMix64 at a counter."""
    word = (parent + (index + 1) * 0x9E3779B97F4A7C15) % WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def key(seed: int, purpose: str) -> int:
    """Return the key of one purpose under a seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def uniform_below(upper_bits: int, bound: int) -> int:
    """Return an integer in 0 … bound - 1 from 32 bits."""
    return upper_bits * bound >> 32


def reference_window(ids, sample, seed, spans, rate, num_kmers, replacement):
    """Return `input_ids`, `labels` and the span of one window in a phase with these spans and this rate."""
    tokens = [int(token) for token in ids]
    span = spans[uniform_below(draw(key(seed, "mask/span"), sample) >> 32, len(spans))]
    centre_key, replacement_key = (draw(key(seed, f"mask/{what}"), sample) for what in ("centre", "replacement"))
    masked = [False] * len(tokens)
    for i, token in enumerate(tokens):
        word = draw(centre_key, i // 2)
        bits = word % 2**32 if i % 2 == 0 else word >> 32
        if token < 5 or bits >= rate * 2**32:
            continue
        first, last = i - (span + 1) // 2 + 1, i + span // 2
        for j in range(first, last + 1):
            if 0 <= j < len(tokens) and tokens[j] >= 5:
                masked[j] = True
    shown = list(tokens)
    labels = [-100] * len(tokens)
    choice = 0
    for i, token in enumerate(tokens):
        if not masked[i]:
            continue
        labels[i] = token
        own = draw(replacement_key, i)
        if replacement == "token" or i == 0 or not masked[i - 1]:
            choice = own >> 32  # for the token, or for the span that begins with it
        if replacement == "mask" or choice < round(0.8 * 2**32):
            shown[i] = MASK
        elif choice < round(0.9 * 2**32):
            shown[i] = 5 + uniform_below(own % 2**32, num_kmers)
    return [CLS, *shown, SEP], [-100, *labels, -100], span


def check_batch(collator, samples, ids, seed, spans_of, rate, num_kmers, replacement):
    """Assert that the fast code and the reference give the same batch. Return the number of masked tokens."""
    batch = collator.mask(np.array(samples), ids)
    labels = batch.labels()
    for row, sample in enumerate(samples):
        expected = reference_window(ids[row], sample, seed, spans_of(sample), rate, num_kmers, replacement)
        assert (batch.input_ids[row].tolist(), labels[row].tolist(), int(batch.span[row])) == expected
    return int((labels != -100).sum())


def windows(rng, num_windows, num_tokens, k):
    """Return random k-mers with some [UNK] among them, in the stored type."""
    ids = rng.integers(5, 5 + 4**k, (num_windows, num_tokens))
    ids[rng.random(ids.shape) < 0.05] = UNK
    return ids.astype(np.uint16 if k < 8 else np.uint32)


@pytest.mark.parametrize("replacement", ["token", "span", "mask"])
@pytest.mark.parametrize("k", range(3, 9))
def test_the_papers_phases(k, replacement):
    """Both ends of every phase, p = 0.025, windows of 1 to 200 tokens."""
    rng, seed, batch = np.random.default_rng(k), 42, 16
    schedule = make_schedule("randommask", k=k, total_steps=480_000)
    collator = RandomMaskCollator(schedule, BatchPlan.constant(batch).step_of, 5 + 4**k, seed, replacement=replacement)
    steps = (0, 29_999, 30_000, 59_999, 60_000, 99_999, 100_000, 149_999, 150_000, 479_999)
    samples = [step * batch + int(rng.integers(batch)) for step in steps]

    def spans_of(sample):
        phase = sum(sample // batch >= end for end in (30_000, 60_000, 100_000, 150_000))
        return list(range(k, k + 2 * phase + 1, 2))

    num_masked = [
        check_batch(collator, samples, windows(rng, 10, size, k), seed, spans_of, 0.025, 4**k, replacement)
        for size in (1, 2, 3, 9, 64, 65, 200)
    ]
    assert sum(num_masked) > 300


@settings(max_examples=150, deadline=None)
@given(
    st.integers(3, 8),
    st.integers(1, 17),
    st.integers(1, 40),
    st.sampled_from([0.025, 0.2, 0.7, 1.0]),
    st.sampled_from(["token", "span", "mask"]),
    st.integers(0, 10**12),
    st.integers(0, 2**32),
)
def test_any_span_length_and_rate(k, span, size, rate, replacement, sample, seed):
    """Odd and even spans, spans longer than the window, rates up to 1."""
    schedule = make_schedule("fixed", k=k, total_steps=10, fixed_span=span, centre_rate=rate)
    collator = RandomMaskCollator(schedule, BatchPlan.constant(8).step_of, 5 + 4**k, seed, replacement=replacement)
    ids = windows(np.random.default_rng(sample), 4, size, k)
    samples = [sample + row for row in range(4)]
    check_batch(collator, samples, ids, seed, lambda _: [span], rate, 4**k, replacement)


@pytest.mark.parametrize("draw_rule", ["uniform", "max"])
def test_odd_spans_in_phases(draw_rule):
    schedule = make_schedule(
        "randommask", k=5, total_steps=30, phase_ends=[10, 20, 30], phase_spans=[5, 8, 11], draw=draw_rule
    )
    collator = RandomMaskCollator(schedule, BatchPlan.constant(4).step_of, 5 + 4**5, 1)
    allowed = {"uniform": ([5], [5, 7], [5, 7, 9, 11]), "max": ([5], [8], [11])}[draw_rule]
    rng = np.random.default_rng(0)
    samples = list(range(4 * 30))
    check_batch(collator, samples, windows(rng, 120, 50, 5), 1, lambda n: allowed[n // 40], 0.025, 4**5, "token")


def test_single_tokens():
    """Policy "token" is BERT's: each token is masked separately."""
    schedule = make_schedule("token", k=1, total_steps=10, token_rate=0.15)
    collator = RandomMaskCollator(schedule, BatchPlan.constant(4).step_of, 300, 9)
    ids = np.random.default_rng(0).integers(5, 300, (40, 100)).astype(np.uint16)
    check_batch(collator, list(range(40)), ids, 9, lambda _: [1], 0.15, 295, "token")


def test_batches_larger_than_one_chunk():
    """The fast code masks a batch in chunks; the borders of chunks and phases must not change the result."""
    schedule = make_schedule("randommask-matched", k=3, total_steps=30, phase_ends=[10, 20, 30])
    collator = RandomMaskCollator(schedule, BatchPlan.constant(10).step_of, 69, 3)
    ids, samples = windows(np.random.default_rng(0), 300, 510, 3), np.arange(300)[::-1]
    batch = collator.mask(samples, ids)
    labels = batch.labels()
    for row in (0, 99, 100, 127, 128, 129, 199, 200, 255, 256, 257, 299):
        phase = int(samples[row]) // 100
        spans = [3, 5, 7][: phase + 1]
        expected = reference_window(ids[row], int(samples[row]), 3, spans, schedule.rates[phase], 64, "token")
        assert (batch.input_ids[row].tolist(), labels[row].tolist(), int(batch.span[row])) == expected
