"""The collator: statistics over a million windows, boundary steps, shapes, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.genome.kmer import CLS_ID, MASK_ID, NUM_SPECIAL, SEP_ID, UNK_ID, vocab_size
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import make_schedule
from dnabert_rm.utils.errors import ConfigError

K, TOKENS, BATCH = 6, 510, 2000
V = vocab_size(K)
PHASES = ((0, 29_999, 6), (30_000, 59_999, 8), (60_000, 99_999, 10), (100_000, 149_999, 12), (150_000, 479_999, 14))


def collator(policy: str = "randommask", **settings) -> RandomMaskCollator:
    """Return a collator with the paper's phases and a global batch of 2,000."""
    replacement = settings.pop("replacement", "token")
    schedule = make_schedule(policy, k=K, total_steps=480_000, **settings)
    return RandomMaskCollator(schedule, BatchPlan.constant(BATCH).step_of, V, 42, replacement=replacement)


def random_ids(num_windows: int, num_tokens: int = TOKENS) -> np.ndarray:
    """Return windows of random k-mers."""
    return np.random.default_rng(0).integers(NUM_SPECIAL, V, (num_windows, num_tokens)).astype(np.uint16)


def expected_by_position(spans: list[int], rate: float) -> np.ndarray:
    """Return the probability that each token is masked: that a centre is near enough and in the window."""
    tokens = np.arange(TOKENS)
    probabilities = []
    for span in spans:
        # Token j is masked by a centre in j - floor(m / 2) … j + ceil(m / 2) - 1.
        first, last = np.maximum(tokens - span // 2, 0), np.minimum(tokens + (span + 1) // 2 - 1, TOKENS - 1)
        probabilities.append(1 - (1 - rate) ** (last - first + 1))
    return np.mean(probabilities, axis=0)


def test_statistics_of_a_million_windows():
    """Per phase 200,000 windows of 510 tokens: fraction, spans, kinds of replacement, and the random k-mers."""
    ids, collate = random_ids(BATCH), collator()
    kinds, random_counts = np.zeros(3), np.zeros(V)
    for number, (first, last, largest) in enumerate(PHASES):
        by_position, spans = np.zeros(TOKENS), np.zeros(16)
        for step in np.linspace(first, last, 100).astype(int):
            batch = collate.mask(step * BATCH + np.arange(BATCH), ids)
            assert (batch.phase == number + 1).all()
            spans += np.bincount(batch.span, minlength=16)
            by_position += np.bincount(batch.positions % (TOKENS + 2) - 1, minlength=TOKENS)
            shown = batch.input_ids.reshape(-1)[batch.positions]
            is_random = (shown != MASK_ID) & (shown != batch.targets)
            kinds += [(shown == MASK_ID).sum(), is_random.sum(), (shown == batch.targets).sum()]
            random_counts += np.bincount(shown[is_random], minlength=V)
        choices = list(range(6, largest + 1, 2))
        check_phase(by_position / 200_000, spans, choices)
    # One random k-mer in 4,096 is the original one, and counts as unchanged here.
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1 * 4095 / 4096, 0.1 + 0.1 / 4096], abs=0.0005)
    assert random_counts[:NUM_SPECIAL].sum() == 0
    expected = random_counts.sum() / 4096
    chi_square = ((random_counts[NUM_SPECIAL:] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 4095) < 5 * np.sqrt(2 * 4095)


def check_phase(fraction_by_position: np.ndarray, spans: np.ndarray, choices: list[int]) -> None:
    """Check the masked fraction by position and the spans of 200,000 windows of a phase."""
    expected = expected_by_position(choices, 0.025)
    print(f"spans {choices}: masked {fraction_by_position.mean():.5f}, expected {expected.mean():.5f}")
    assert fraction_by_position.mean() == pytest.approx(expected.mean(), abs=0.0003)
    assert abs(fraction_by_position - expected).max() < 5.5 * np.sqrt(0.25 * 0.75 / 200_000)
    assert fraction_by_position[20:-20].mean() == pytest.approx(
        np.mean([1 - 0.975**span for span in choices]), abs=0.0005
    )
    assert set(np.flatnonzero(spans)) == set(choices)
    assert abs(spans[choices] / 200_000 - 1 / len(choices)).max() < 5 * np.sqrt(0.25 / 200_000)


@pytest.mark.parametrize(
    ("step", "largest"),
    [
        (0, 6),
        (29_999, 6),
        (30_000, 8),
        (59_999, 8),
        (60_000, 10),
        (99_999, 10),
        (100_000, 12),
        (149_999, 12),
        (150_000, 14),
        (479_999, 14),
        (480_000, 14),
    ],
)
def test_no_window_is_masked_wider_than_its_step_allows(step, largest):
    """At both sides of every boundary the largest span is reached and never exceeded."""
    samples, ids = step * BATCH + np.arange(BATCH), random_ids(BATCH, 120)
    batch = collator(centre_rate=0.001).mask(samples, ids)
    assert batch.span.max() == largest
    assert batch.span.min() == 6
    mixed = np.concatenate([samples, samples[:5] - BATCH]) if step else samples
    assert (collator().mask(mixed, np.resize(ids, (len(mixed), 120))).span[:BATCH] == batch.span).all()
    # With so few centres a window rarely has two, so its longest run of masked tokens is its span.
    labels = batch.labels()[:, 1:-1] != IGNORE
    runs = np.diff(np.flatnonzero(np.diff(np.pad(labels, ((0, 0), (1, 1))).astype(int).reshape(-1))).reshape(-1, 2))
    assert np.bincount(runs[:, 0]).argmax() in range(6, largest + 1, 2)
    assert (runs > largest).mean() < 0.1


def test_matched_policy_keeps_the_fraction():
    for first, _, largest in PHASES:
        batch = collator("randommask-matched").mask(first * BATCH + np.arange(BATCH), random_ids(BATCH))
        assert len(batch.positions) / (BATCH * TOKENS) == pytest.approx(1 - 0.975**6, abs=0.004)
        assert batch.span.max() == largest


@pytest.mark.parametrize("replacement", ["token", "span", "mask"])
def test_a_mask_depends_on_its_sample_only(replacement):
    """It does not depend on the batch, the order within it, or the batches before."""
    ids, samples = random_ids(300), 149_990 * BATCH + np.arange(300) * 77
    collate = collator(replacement=replacement)
    whole = collate.mask(samples, ids)
    order = np.random.default_rng(1).permutation(300)
    for rows in (order[:1], order[:7], order, np.arange(299, -1, -1)):
        part = collate.mask(samples[rows], ids[rows])
        assert (part.input_ids == whole.input_ids[rows]).all()
        assert (part.labels() == whole.labels()[rows]).all()
        assert (part.span == whole.span[rows]).all()


def test_seed_and_sample_change_the_mask():
    ids = random_ids(1)
    one = collator().mask(np.array([5]), ids)
    schedule = make_schedule("randommask", k=K, total_steps=480_000)
    reseeded = RandomMaskCollator(schedule, BatchPlan.constant(BATCH).step_of, V, 43)
    assert (one.input_ids != collator().mask(np.array([6]), ids).input_ids).any()
    assert (one.input_ids != reseeded.mask(np.array([5]), ids).input_ids).any()


def test_special_tokens_are_never_touched():
    ids = random_ids(200, 60)
    ids[np.random.default_rng(2).random(ids.shape) < 0.2] = UNK_ID
    batch = collator(centre_rate=0.3).mask(np.arange(200), ids)
    assert (batch.input_ids[:, 0] == CLS_ID).all()
    assert (batch.input_ids[:, -1] == SEP_ID).all()
    assert (batch.input_ids[:, 1:-1][ids == UNK_ID] == UNK_ID).all()
    assert (batch.labels()[:, 1:-1][ids == UNK_ID] == IGNORE).all()
    assert batch.targets.min() >= NUM_SPECIAL


def test_the_batch_of_the_training_loop():
    ids, samples = random_ids(8), np.arange(8) * 3
    batch = collator()((samples, ids))
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, 2),
        "positions": (torch.int64, 1),
        "targets": (torch.int64, 1),
        "span": (torch.int64, 1),
        "samples": (torch.int64, 1),
    }
    assert batch["input_ids"].shape == (8, TOKENS + 2)
    original = np.full((8, TOKENS + 2), -1)
    original[:, 1:-1] = ids
    assert (torch.from_numpy(original).flatten()[batch["positions"]] == batch["targets"]).all()
    untouched = np.ones(8 * (TOKENS + 2), dtype=bool)
    untouched[batch["positions"].numpy()] = False
    untouched &= original.reshape(-1) >= 0
    assert (batch["input_ids"].flatten().numpy()[untouched] == original.reshape(-1)[untouched]).all()


def test_a_batch_without_a_mask_still_gives_the_head_a_position():
    """Under ZeRO-3 every rank has to run the head."""
    batch = collator(centre_rate=1e-9)((np.arange(4), random_ids(4, 1)))
    assert batch["positions"].tolist() == [0]
    assert batch["targets"].tolist() == [IGNORE]


def test_an_unknown_replacement_is_refused():
    with pytest.raises(ConfigError, match=r"masking\.replacement 'word' must be one of token, span"):
        collator(replacement="word")
