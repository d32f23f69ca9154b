"""Hidden stretches: nothing of a hidden base reaches the model, and bits per base equal a slow computation.

The reader below answers from what it sees: it gives a base that any visible token covers probability 1, and guesses the
others evenly. On random DNA it gets 2 bits exactly where nothing leaks, so no model can do better there by a fault of
the mask.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches, find_stretches
from dnabert_rm.genome import kmer
from dnabert_rm.masking.hidden_stretches import HiddenBatch, WindowShape, make_batches, place_windows
from dnabert_rm.model.build import build_model, transformers_config
from dnabert_rm.model.losses import hidden_base_bits
from dnabert_rm.model.mlm import MaskedLM

SHAPES = [
    WindowShape(k=6, stride=1, num_tokens=62),
    WindowShape(k=3, stride=1, num_tokens=40),
    WindowShape(k=4, stride=4, num_tokens=30),
    WindowShape(k=6, stride=1, num_tokens=510),
]


def random_regions(count: int = 4, num_bases: int = 1500) -> list[HeldOutRegion]:
    rng = np.random.default_rng(0)
    return [
        HeldOutRegion("g", "c", 0, rng.integers(0, 4, num_bases).astype(np.uint8), 100, num_bases - 50, segment=number)
        for number in range(count)
    ]


def batches_of(
    regions: list[HeldOutRegion], stretches: HiddenStretches, shape: WindowShape, batch_size: int = 8
) -> list[HiddenBatch]:
    codes = [region.codes for region in regions]
    num_hidden = stretches.num_hidden
    windows = place_windows([len(part) for part in codes], stretches.region, stretches.start, num_hidden, shape)
    return list(make_batches(codes, windows, stretches.start, num_hidden, shape, batch_size))


def visible_codes(ids: NDArray[np.int64], shape: WindowShape) -> NDArray[np.uint8]:
    """Return the bases of a window that a token other than a special token covers; the others are `AMBIGUOUS`."""
    codes = np.full(shape.bases_of(len(ids)), kmer.AMBIGUOUS, dtype=np.uint8)
    for number, token in enumerate(ids.tolist()):
        if token >= kmer.NUM_SPECIAL:
            codes[number * shape.stride : number * shape.stride + shape.k] = kmer.kmer_codes(np.array(token), shape.k)
    return codes


def answers_of_a_perfect_reader(batch: HiddenBatch, shape: WindowShape) -> torch.Tensor:
    """Return logits (M, V): 0 for the k-mers that agree with all visible bases, -100 for the others."""
    all_codes = kmer.kmer_codes(np.arange(kmer.NUM_SPECIAL, kmer.vocab_size(shape.k)), shape.k)
    length = batch.input_ids.shape[1]
    logits = torch.full((len(batch.positions), kmer.vocab_size(shape.k)), -100.0)
    seen = [visible_codes(row[1:-1], shape) for row in batch.input_ids]
    for number, position in enumerate(batch.positions.tolist()):
        row, column = divmod(position, length)
        first = (column - 1) * shape.stride
        known = seen[row][first : first + shape.k]
        agree = ((all_codes == known) | (known == kmer.AMBIGUOUS)).all(axis=1)
        logits[number, kmer.NUM_SPECIAL :][torch.from_numpy(agree)] = 0.0
    return logits


def mean_bits(batches: list[HiddenBatch], shape: WindowShape) -> float:
    bits = []
    for batch in batches:
        hidden, codes = torch.from_numpy(batch.hidden), torch.from_numpy(batch.true_codes)
        bits.append(hidden_base_bits(answers_of_a_perfect_reader(batch, shape), hidden, codes, shape.k))
    return float(torch.cat(bits).mean())


@pytest.mark.parametrize("num_hidden", [1, 3, 5, 9])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_nothing_of_a_hidden_base_is_visible(shape: WindowShape, num_hidden: int) -> None:
    """A perfect reader of the visible tokens gets exactly 2 bits. A mask that is one token short gives it more."""
    regions = random_regions(2, 700)
    stretches = find_stretches(regions, num_hidden)
    batches = batches_of(regions, stretches, shape)
    assert math.isclose(mean_bits(batches, shape), 2.0, abs_tol=1e-9)

    lengths = [len(region.codes) for region in regions]
    window = place_windows(lengths, stretches.region, stretches.start, num_hidden, shape)[0]
    row, column = divmod(int(batches[0].positions[0]), shape.num_tokens + 2)
    assert row == 0
    visible = regions[window.sequence].codes[window.start :][(column - 1) * shape.stride :][: shape.k]
    batches[0].input_ids[row, column] = kmer.encode_codes(visible, shape.k)[0]
    assert mean_bits(batches[:1], shape) < 2.0 - 1e-3


@pytest.mark.parametrize("num_hidden", [1, 5, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_stretch_is_hidden_once_and_everything_else_is_visible(shape: WindowShape, num_hidden: int) -> None:
    regions = random_regions()
    stretches = find_stretches(regions, num_hidden)
    batches = batches_of(regions, stretches, shape)
    seen = np.concatenate([batch.stretches for batch in batches])
    assert sorted(seen) == sorted(np.repeat(np.arange(len(stretches.start)), num_hidden))
    for batch in batches:
        stretch = batch.stretches.reshape(-1, num_hidden)[:, 0]
        true = [
            regions[stretches.region[i]].codes[stretches.start[i] : stretches.start[i] + num_hidden] for i in stretch
        ]
        assert np.array_equal(batch.true_codes, np.concatenate(true))
        # Each base of a stretch is covered by all tokens that can cover it, and no other token is masked.
        covered = np.bincount(batch.hidden.reshape(-1), minlength=len(batch.true_codes) + 1)[:-1]
        assert (covered == (shape.k if shape.stride == 1 else 1)).all()
        assert ((batch.hidden < len(batch.true_codes)).any(axis=1)).all()
        assert (batch.input_ids == kmer.MASK_ID).sum() == len(batch.positions)
        assert (batch.input_ids.reshape(-1)[batch.positions] == kmer.MASK_ID).all()


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("num_hidden", [1, 5])
def test_bits_equal_a_slow_computation_from_a_models_probabilities(shape: WindowShape, num_hidden: int) -> None:
    """For each hidden base: the mean, over the masked tokens that cover it, of sums over k-mers with the base there."""
    regions = random_regions(1, 300)
    stretches = find_stretches(regions, num_hidden)
    (batch, *_) = batches_of(regions, stretches, shape)
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "dropout": 0.0}
    config = transformers_config(
        architecture="bert", vocab_size=kmer.vocab_size(shape.k), max_positions=shape.num_tokens + 2, **sizes
    )
    model = MaskedLM(build_model(config, seed=0), shape.k).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        logits = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.positions))
        bits = hidden_base_bits(logits, torch.from_numpy(batch.hidden), torch.from_numpy(batch.true_codes), shape.k)
        probabilities = logits.double().softmax(dim=1).numpy()
    words = kmer.vocabulary(shape.k)
    for base, code in enumerate(batch.true_codes[: 3 * num_hidden].tolist()):
        marginals = []
        for token, place in zip(*np.nonzero(batch.hidden == base), strict=True):
            by_base = [0.0] * 4
            for word, probability in zip(words[5:], probabilities[token][5:], strict=True):
                by_base["ATCG".index(word[place])] += probability
            marginals.append(by_base[code] / sum(by_base))
        assert math.isclose(bits[base], -math.log2(sum(marginals) / len(marginals)), rel_tol=1e-5)
    assert float(bits.std()) > 0.01


def test_a_window_that_is_too_short_can_t_hide_a_stretch() -> None:
    assert not WindowShape(6, 1, 10).can_hide(9)
    assert WindowShape(6, 1, 40).can_hide(9)


def test_a_sequence_shorter_than_a_window_is_one_window() -> None:
    regions = random_regions(1, 400)
    shape = WindowShape(6, 1, 510)
    (batch,) = batches_of(regions, find_stretches(regions, 3), shape)
    assert batch.input_ids.shape == (1, 397)
