"""Attention measures, silhouettes and windows, compared with slow or independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import silhouette_score

from dnabert_rm.analysis.attention import attention_record, summarize, windows_of_records
from dnabert_rm.analysis.kmer_map import (
    COSINE,
    EUCLIDEAN,
    PLANE,
    SHUFFLED,
    central_labels,
    map_figure,
    map_kmers,
    pair_name,
    steps_figure,
)
from dnabert_rm.genome.kmer import NUM_SPECIAL, UNK_ID, encode, vocabulary
from dnabert_rm.utils.errors import ConfigError, DataError


def test_entropy_is_log_l_for_uniform_attention_and_0_for_a_single_token() -> None:
    uniform, single = np.full((2, 3, 20, 20), 1 / 20), np.zeros((2, 3, 20, 20))
    single[..., 7] = 1
    first, second = attention_record(summarize([[uniform, single]]))
    assert first["entropy"] == pytest.approx(math.log(20)) and first["entropy_share"] == pytest.approx(1)
    assert first["cls_entropy"] == pytest.approx(math.log(20))
    assert first["top5_mass"] == pytest.approx(5 / 20) == first["top5_mass_of_window"]
    assert first["by_head"]["cls_entropy"] == pytest.approx([math.log(20)] * 3)
    assert second["entropy"] == 0 and second["top5_mass"] == second["top5_mass_of_window"] == 1


def test_windows_that_attend_to_different_tokens_have_no_entropy() -> None:
    weights = np.zeros((2, 1, 4, 4))
    weights[0, ..., 1] = weights[1, ..., 2] = 1
    (record,) = attention_record(summarize([[weights]]))
    assert record["entropy"] == record["cls_entropy"] == 0 and record["by_head"]["cls_entropy"] == [0]


def test_attention_numbers_equal_slow_ones_for_any_batching() -> None:
    rng = np.random.default_rng(0)
    weights = softmax(3 * rng.normal(size=(5, 2, 9, 9)), axis=-1)  # windows, heads, queries, keys
    (layer,) = summarize([[weights[:2]], [weights[2:]]])
    for head in range(2):
        rows = weights[:, head].reshape(-1, 9)
        assert layer.entropy[head] == pytest.approx(np.mean([scipy_entropy(row) for row in rows]), rel=1e-5)
        assert layer.top_mass[head] == pytest.approx(np.mean([sum(sorted(row)[-5:]) for row in rows]), rel=1e-5)
        of_cls = [scipy_entropy(window[0]) for window in weights[:, head]]
        assert layer.cls_entropy[head] == pytest.approx(np.mean(of_cls), rel=1e-5)
        received = [sum(sorted(window.mean(axis=0))[-5:]) for window in weights[:, head]]
        assert layer.top_mass_of_window[head] == pytest.approx(np.mean(received), rel=1e-5)
    assert layer.mean_map == pytest.approx(weights.mean(axis=(0, 1)), rel=1e-5)
    assert layer.cls_map == pytest.approx(weights[:, :, 0].mean(axis=0), rel=1e-5)


@pytest.mark.parametrize("k", [3, 4, 6])
def test_labels_are_the_two_central_bases(k: int) -> None:
    first = {3: 1, 4: 1, 6: 2}[k]
    words = vocabulary(k)
    ids = np.arange(NUM_SPECIAL, NUM_SPECIAL + 4**k)
    assert [pair_name(label) for label in central_labels(ids, k).tolist()] == [
        words[i][first : first + 2] for i in ids.tolist()
    ]


def test_silhouettes_are_scikit_learns_and_detect_groups() -> None:
    rng = np.random.default_rng(0)
    words = vocabulary(4)
    matrix = rng.normal(size=(len(words) + 3, 12))  # three rows of padding
    kmer_map = map_kmers(matrix, 4, perplexity=20)
    pairs = [word[1:3] for word in words[NUM_SPECIAL:]]
    points = matrix[NUM_SPECIAL : len(words)]
    assert kmer_map.scores[COSINE] == pytest.approx(silhouette_score(points, pairs, metric="cosine"))
    assert kmer_map.scores[EUCLIDEAN] == pytest.approx(silhouette_score(points, pairs))
    assert kmer_map.plane is not None and kmer_map.plane.shape == (256, 2)
    assert kmer_map.scores[PLANE] == pytest.approx(silhouette_score(kmer_map.plane, pairs))
    # For sixteen groups of random points the score is below 0, as for shuffled labels.
    assert kmer_map.scores[COSINE] == pytest.approx(kmer_map.scores[COSINE + SHUFFLED], abs=0.03)
    assert kmer_map.scores[COSINE] < -0.05
    centres = {pair: rng.normal(size=12) for pair in set(pairs)}
    matrix[NUM_SPECIAL : len(words)] = [centres[pair] + 0.1 * rng.normal(size=12) for pair in pairs]
    grouped = map_kmers(matrix, 4, perplexity=20)
    assert min(grouped.scores[name] for name in (COSINE, EUCLIDEAN, PLANE)) > 0.6
    assert grouped.scores[COSINE + SHUFFLED] < 0
    title = " ".join(text.get_text() for axes in map_figure(grouped, "a model").axes for text in axes.texts)
    assert f"{grouped.scores[COSINE]:.3f} (cosine)" in title and f"t-SNE plane {grouped.scores[PLANE]:.3f}" in title
    lines = steps_figure({10: grouped.scores, 20: kmer_map.scores}, "a model").axes[0].lines
    assert lines[0].get_xydata().tolist() == [[10, grouped.scores[COSINE]], [20, kmer_map.scores[COSINE]]]


def test_kmers_beyond_the_limit_are_sampled_and_invalid_matrices_rejected() -> None:
    matrix = np.random.default_rng(0).normal(size=(NUM_SPECIAL + 4**5, 4))
    kmer_map = map_kmers(matrix, 5, plane=False, max_kmers=100)
    assert len(set(kmer_map.ids.tolist())) == 100 and kmer_map.ids.max() < len(matrix) and PLANE not in kmer_map.scores
    with pytest.raises(ConfigError, match="fewer than the 4101 tokens"):
        map_kmers(matrix, 6)
    matrix[9] = np.nan
    with pytest.raises(ConfigError, match="not finite"):
        map_kmers(matrix, 5)


@pytest.mark.parametrize(("overlapping", "stride"), [(True, 1), (False, 3)])
def test_windows_of_records_match_their_bases(overlapping: bool, stride: int) -> None:
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 200))
    with_n = bases[:20] + "N" + bases[21:]
    blocks = [with_n[start : start + 13].encode() for start in range(0, 200, 13)]
    windows = windows_of_records(
        [("a", [b"ACG"]), ("b", blocks)], "x", 3, window=8, num_windows=50, overlapping=overlapping
    )
    num_bases = 5 * stride + 3
    expected = [encode(with_n[i : i + num_bases], 3)[::stride] for i in range(0, 200 - num_bases + 1, num_bases)]
    assert windows[:, 1:-1].tolist() == [ids.tolist() for ids in expected if UNK_ID not in ids]
    assert (windows[:, 0] == 2).all() and (windows[:, -1] == 3).all()
    with pytest.raises(DataError, match="no window of 303 bases"):
        windows_of_records([("b", [bases.encode()])], "x", 3, window=303, num_windows=5, overlapping=True)
