"""The order of windows: each once per epoch, bases covered evenly, a good shuffle, few shards per rank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.data.sampler import EpochSampler, Windows
from dnabert_rm.utils.errors import ConfigError

LENGTHS = st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=6), min_size=1, max_size=5)
HUMAN_MEGABASES = (
    *(248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133),
    *(114, 107, 101, 90, 83, 80, 58, 64, 46, 50, 156, 57),
)
"""Chromosomes 1 to 22, X and Y of GRCh38."""


def rows(found: Windows) -> list[tuple]:
    """Return one tuple per window."""
    return list(zip(*(array.tolist() for array in vars(found).values()), strict=True))


def epoch(order: EpochSampler, number: int = 0) -> Windows:
    """Return all windows of one epoch."""
    return order.locate(number * order.epoch_samples + np.arange(order.epoch_samples))


@settings(max_examples=150, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 50),
    st.sampled_from(["forward", "random", "both"]),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_every_window_comes_once_per_epoch(shards, stored_tokens, strand, num_streams, block_windows, number):
    if max(map(max, shards)) < stored_tokens:
        return
    order = EpochSampler(shards, stored_tokens, 7, strand=strand, num_streams=num_streams, block_windows=block_windows)
    found = epoch(order, number)
    lengths = np.array([shards[shard][segment] for _, shard, segment, _, _ in rows(found)])
    assert (found.start >= 0).all()
    assert (found.start + stored_tokens <= lengths).all()
    expected = Counter(
        (shard, segment, flip)
        for shard, segments in enumerate(shards)
        for segment, length in enumerate(segments)
        if length >= stored_tokens
        for _ in range((length + stored_tokens // 2) // stored_tokens)
        for flip in ((False, True) if strand == "both" else (None,))
    )
    found_strands = found.reverse.tolist() if strand == "both" else [None] * len(found.start)
    assert Counter(zip(found.shard.tolist(), found.segment.tolist(), found_strands, strict=True)) == expected
    coordinates = [(shard, segment, start, strand == "both" and flip) for _, shard, segment, start, flip in rows(found)]
    assert len(set(coordinates)) == len(coordinates), "a window came twice"


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.lists(st.integers(0, 5000), min_size=1, max_size=50), st.sampled_from(["forward", "random", "both"]))
def test_a_sample_has_the_same_window_in_every_call(shards, samples, strand):
    order = EpochSampler([[400], *shards], 10, 1, strand=strand)
    together = rows(order.locate(samples))
    again = EpochSampler([[400], *shards], 10, 1, strand=strand)
    assert [rows(again.locate([sample]))[0] for sample in samples] == together
    assert rows(order.locate(samples[::-1])) == together[::-1]


def test_seed_epoch_and_data_set_change_the_order():
    def first(seed=0, source=0, epoch_number=0):
        order = EpochSampler([[5000, 3000], [7000]], 10, seed, source=source)
        return [row[1:] for row in rows(order.locate(epoch_number * order.epoch_samples + np.arange(100)))]

    samplers = [first(), first(seed=1), first(source=1), first(epoch_number=1), first(epoch_number=2)]
    assert all(a != b for number, a in enumerate(samplers) for b in samplers[:number])


def test_both_strands_have_the_same_coordinates():
    found = epoch(EpochSampler([[900, 400]], 30, 0, strand="both"))
    forward, reverse = ({row[1:4] for row in rows(found) if row[4] == flip} for flip in (False, True))
    assert forward == reverse


def test_random_strands_are_half():
    found = EpochSampler([[100_000]], 10, 0, strand="random").locate(np.arange(100_000))
    assert found.reverse.mean() == pytest.approx(0.5, abs=0.01)
    assert (found.reverse[1:] == found.reverse[:-1]).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("length", "stored_tokens"), [(100, 100), (140, 100), (150, 100), (1000, 100), (1049, 64), (77, 1)]
)
def test_bases_are_covered_evenly(length, stored_tokens):
    """Over many epochs coverage is constant in the middle, and between 0.5 and 1.5 times that near an end."""
    num_epochs = 2000
    order = EpochSampler([[length]], stored_tokens, 3)
    found = order.locate(np.arange(num_epochs * order.epoch_samples))
    starts = np.bincount(found.start, minlength=length + 1)
    ends = np.bincount(found.start + stored_tokens, minlength=length + 1)
    coverage = np.cumsum(starts - ends)[:length] / num_epochs
    mean = order.num_windows * stored_tokens / length
    assert coverage.sum() == pytest.approx(order.num_windows * stored_tokens)
    assert coverage.min() > 0.45 * mean
    assert coverage.max() < 1.6 * mean
    middle = coverage[stored_tokens : length - stored_tokens]
    if len(middle):
        assert middle == pytest.approx(np.full(len(middle), mean), rel=0.1)


def test_all_offsets_of_windows_are_used():
    """With non-overlapping tokens the offset of the reading frame comes from the jitter."""
    found = EpochSampler([[60_000]], 61, 0).locate(np.arange(20_000))
    counts = np.bincount(found.start % 6, minlength=6)
    assert counts / counts.mean() == pytest.approx(np.ones(6), abs=0.06)


def test_short_segments_are_counted():
    order = EpochSampler([[9, 10, 3], [25]], 10, 0)
    assert (order.num_short_segments, order.num_short_tokens, order.num_windows) == (2, 12, 1 + 3)


def test_remainder_is_kept_or_dropped():
    kept = EpochSampler([[1050]], 10, 0)
    dropped = EpochSampler([[1050]], 10, 0, drop_to_multiple_of=8)
    assert (kept.epoch_samples, dropped.epoch_samples, dropped.num_windows) == (105, 104, 105)
    first, second = (set(rows(epoch(dropped, number))) for number in (0, 1))
    assert len(first) == len(second) == 104
    assert rows(kept.locate([104])) != rows(kept.locate([105]))


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"longest segment has 8 tokens\); lower --window"):
        EpochSampler([[5, 8]], 9, 0)
    with pytest.raises(ConfigError, match=r"data\.strand 'back' must be one of forward, random, both"):
        EpochSampler([[5, 8]], 5, 0, strand="back")


def human_order() -> tuple[EpochSampler, np.ndarray]:
    """Return the order of a human-sized data set of 94 shards, and the chromosome of each segment by shard."""
    chromosomes = np.repeat(np.arange(24), [megabases * 10**6 // 65536 + 1 for megabases in HUMAN_MEGABASES])
    shards = np.array_split(chromosomes, 94)
    table = np.full((94, max(map(len, shards))), -1)
    for number, shard in enumerate(shards):
        table[number, : len(shard)] = shard
    return EpochSampler([[65536] * len(shard) for shard in shards], 510, 0), table


def test_batches_are_as_mixed_as_a_perfect_shuffle_would_make_them():
    """Pairs in a batch from one chromosome, against the probability for two random windows of the genome.

    Measured: 1.01 times a perfect shuffle's pairs in a batch of 2,048. Neighbours in the order have 0.88 times as many,
    because they never come from the same stream.
    """
    order, chromosome_of = human_order()
    shares = np.bincount(chromosome_of[chromosome_of >= 0]) / (chromosome_of >= 0).sum()
    perfect = float((shares**2).sum())
    ratios, neighbours, same_shard = [], [], []
    for number in range(24):
        first = number * order.epoch_samples + number % 6 * order.epoch_samples // 6
        found = order.locate(first + np.arange(2048))
        chromosomes = chromosome_of[found.shard, found.segment]
        counts = np.bincount(chromosomes)
        ratios.append((counts * (counts - 1)).sum() / (2048 * 2047) / perfect)
        neighbours.append(np.mean(chromosomes[1:] == chromosomes[:-1]) / perfect)
        same_shard.append(np.mean(found.shard[1:] == found.shard[:-1]))
    print(f"pairs from one contig: {np.mean(ratios):.3f} of a perfect shuffle's, neighbours {np.mean(neighbours):.3f}")
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert max(ratios) < 1.2
    assert np.mean(neighbours) == pytest.approx(1, abs=0.2)
    assert np.mean(same_shard) < 2 / 94


def test_segments_are_mixed_too():
    """Windows of one segment (65,536 tokens) must not come closer together than in a perfect shuffle."""
    order, _ = human_order()
    found = order.locate(np.arange(2048 * 8))
    keys = found.shard * 10_000 + found.segment
    counts = np.unique(keys, return_counts=True)[1]
    pairs = (counts * (counts - 1)).sum() / (len(keys) * (len(keys) - 1))
    in_play = 64 * 65536 / order.num_windows  # streams x block, as a share of the epoch
    perfect = 1 / (order.num_windows / 128.5)
    assert pairs < 1.3 * perfect / in_play


def test_a_rank_has_few_shards_open():
    order, _ = human_order()
    rank_0_of_64 = np.arange(20_000) * 64
    assert len(np.unique(order.locate(rank_0_of_64).shard)) <= 4
    rank_0_of_1 = np.arange(20_000)
    assert len(np.unique(order.locate(rank_0_of_1).shard)) <= 94


def test_seeking_costs_the_same_anywhere():
    order, _ = human_order()
    assert rows(order.locate(np.arange(10**12, 10**12 + 5)))
    assert len(order._epochs) <= 2
