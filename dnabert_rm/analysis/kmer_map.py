"""t-SNE map and silhouette scores of k-mer embeddings. K-mers with the same two central bases form a group."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import COLOURS, LINES, MARKERS, NORMAL, SMALL, new_figure
from dnabert_rm.genome.kmer import BASE_ORDER, NUM_SPECIAL, codes_to_bases, kmer_codes
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_KMERS = 4096
"""Maximum number of k-mers in a map. It allows all k-mers up to k = 6, and a random sample for larger k."""
COSINE, EUCLIDEAN, PLANE = "silhouette_cosine", "silhouette_euclidean", "silhouette_tsne"
SHUFFLED = "_shuffled"
"""Suffix of score names for shuffled labels. With many groups, the score for shuffled labels is below 0."""
METRICS = ("euclidean", "cosine")
COLUMNS = ("kmer", "central_bases", "x", "y")
TITLES = {
    COSINE: "embedding space, cosine distance",
    EUCLIDEAN: "embedding space, Euclidean distance",
    PLANE: "t-SNE plane, Euclidean distance",
}


@dataclass(frozen=True)
class KmerMap:
    """Silhouette scores and optional t-SNE coordinates of N k-mer embeddings."""

    k: int
    ids: NDArray[np.int64]
    """(N,) vocabulary ids."""
    labels: NDArray[np.int64]
    """(N,) 4 × code of the first central base + code of the second base, with codes A 0, T 1, C 2, G 3."""
    scores: dict[str, float]
    """Silhouette scores, keyed by `COSINE`, `EUCLIDEAN` and `PLANE`. The suffix `SHUFFLED` is for shuffled labels."""
    plane: NDArray[np.float64] | None = None
    """(N, 2) t-SNE coordinates."""
    perplexity: float | None = None
    """t-SNE perplexity, at most a third of the number of points."""


def central_bases(k: int) -> tuple[int, int]:
    """Return the 0-based positions of the two central bases of a k-mer: 2 and 3 for k = 6.

    For odd k, the two central bases are the middle base and the next base: 2 and 3 for k = 5.
    """
    return (k - 1) // 2, (k - 1) // 2 + 1


def central_labels(ids: NDArray, k: int) -> NDArray[np.int64]:
    """Return a label from 0 to 15 for each k-mer id. The label encodes the two central bases (see `KmerMap.labels`)."""
    codes = kmer_codes(ids, k).astype(np.int64)
    first, second = central_bases(k)
    return 4 * codes[:, first] + codes[:, second]


def map_kmers(
    matrix: NDArray,
    k: int,
    *,
    plane: bool = True,
    metric: str = "euclidean",
    perplexity: float = 30.0,
    max_kmers: int = MAX_KMERS,
    seed: int = 0,
) -> KmerMap:
    """Compute silhouette scores of k-mer embeddings. If `plane` is true, also compute a t-SNE map.

    The rows of `matrix` are the embeddings of 5 special tokens, then of 4^k k-mers. Any further rows are padding.
    `metric` and `perplexity` are parameters of scikit-learn's t-SNE. If there are more than `max_kmers` k-mers, a
    random sample of `max_kmers` is used. Raise `ConfigError` if the matrix has too few rows or k-mers, or values that
    are not finite.
    """
    from sklearn.metrics import silhouette_score

    if len(matrix) < NUM_SPECIAL + 4**k:
        raise ConfigError(
            f"{len(matrix)} embeddings are fewer than the {NUM_SPECIAL + 4**k} tokens for k = {k}; "
            "vocabulary and weights do not match, so export the model again"
        )
    chosen = np.arange(4**k)
    if len(chosen) > max_kmers:
        chosen = np.sort(random.permutation(random.key(seed, "embedded k-mers"), len(chosen))[:max_kmers])
    ids = NUM_SPECIAL + chosen
    points, labels = np.asarray(matrix, dtype=np.float64)[ids], central_labels(ids, k)
    if not np.isfinite(points).all():
        raise ConfigError("the embeddings contain values that are not finite; choose an earlier checkpoint")
    if len(set(labels.tolist())) >= len(labels):
        raise ConfigError(f"{len(labels)} k-mers are too few for {len(set(labels.tolist()))} groups; raise --points")
    shuffled = labels[random.permutation(random.key(seed, "shuffled labels"), len(labels))]
    scores = {
        name + suffix: float(silhouette_score(points, groups, metric=distance))
        for suffix, groups in (("", labels), (SHUFFLED, shuffled))
        for name, distance in ((COSINE, "cosine"), (EUCLIDEAN, "euclidean"))
    }
    if not plane:
        return KmerMap(k, ids, labels, scores)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    coordinates = _tsne(points, metric, perplexity, seed)
    scores[PLANE] = float(silhouette_score(coordinates, labels))
    return KmerMap(k, ids, labels, scores, coordinates, perplexity)


def _tsne(points: NDArray, metric: str, perplexity: float, seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    return TSNE(metric=metric, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


def map_csv(kmer_map: KmerMap) -> str:
    """Return the t-SNE map as CSV text with the columns kmer, central_bases, x and y."""
    assert kmer_map.plane is not None
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for codes, label, (x, y) in zip(kmer_codes(kmer_map.ids, kmer_map.k), kmer_map.labels, kmer_map.plane, strict=True):
        writer.writerow([codes_to_bases(codes).decode(), pair_name(int(label)), f"{x:.5g}", f"{y:.5g}"])
    return stream.getvalue()


def pair_name(label: int) -> str:
    """Return the two central bases that a label from 0 to 15 encodes (see `KmerMap.labels`)."""
    return BASE_ORDER[label // 4] + BASE_ORDER[label % 4]


def map_figure(kmer_map: KmerMap, title: str) -> Figure:
    """Plot the t-SNE map. Colours show the first central base, and marker shapes show the second central base.

    The silhouette scores are printed above the map.
    """
    assert kmer_map.plane is not None
    figure = new_figure(7.6, 6.6)
    panel = figure.subplots()
    for label in range(16):
        points = kmer_map.plane[kmer_map.labels == label]
        style: dict[str, Any] = {"color": COLOURS[label // 4], "marker": MARKERS[label % 4]}
        panel.scatter(points[:, 0], points[:, 1], s=_marker_area(len(kmer_map.ids)), alpha=0.75, linewidths=0, **style)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_aspect("equal", adjustable="datalim")
    panel.set_xlabel("t-SNE 1", fontsize=SMALL)
    panel.set_ylabel("t-SNE 2", fontsize=SMALL)
    panel.text(
        0.0, 1.0, _score_text(kmer_map), transform=panel.transAxes, va="bottom", fontsize=NORMAL, linespacing=1.5
    )
    panel.set_title(
        f"t-SNE of the k-mer embeddings: {title}", fontsize=NORMAL + 1, loc="left", fontweight="bold", pad=44
    )
    _base_legends(figure, kmer_map.k)
    return figure


def _score_text(kmer_map: KmerMap) -> str:
    shown, total = len(kmer_map.ids), 4**kmer_map.k
    count = f"{total:,} {kmer_map.k}-mers" if shown == total else f"{shown:,} of {total:,} {kmer_map.k}-mers"
    scores = kmer_map.scores
    shuffled = f"{scores[COSINE + SHUFFLED]:.3f} and {scores[EUCLIDEAN + SHUFFLED]:.3f}"
    return (
        f"{count}; silhouette by the two central bases: t-SNE plane {scores[PLANE]:.3f};\n"
        f"embedding space {scores[COSINE]:.3f} (cosine), {scores[EUCLIDEAN]:.3f} (Euclidean); "
        f"shuffled labels {shuffled}"
    )


def _marker_area(num_points: int) -> float:
    """Return the area of a scatter marker in pt². Maps with fewer points have larger markers."""
    return float(np.clip(16000 / num_points, 7, 45))


def _base_legends(figure: Figure, k: int) -> None:
    """Add a legend that explains the colours (first central base) and the markers (second central base)."""
    from matplotlib.lines import Line2D

    names = [f"base {position + 1} of {k}" for position in central_bases(k)]
    plain: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    colours = [
        Line2D([], [], color=COLOURS[n], marker="s", label=f"{names[0]} is {base}", **plain)
        for n, base in enumerate(BASE_ORDER)
    ]
    marks = [
        Line2D([], [], color="#555555", marker=MARKERS[n], label=f"{names[1]} is {base}", **plain)
        for n, base in enumerate(BASE_ORDER)
    ]
    handles = [handle for pair in zip(colours, marks, strict=True) for handle in pair]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)


def steps_figure(by_step: Mapping[int, Mapping[str, float]], title: str) -> Figure:
    """Plot the silhouette scores of a run's checkpoints against the training step.

    The score of the t-SNE coordinates is omitted if only one of several checkpoints has t-SNE coordinates.
    """
    figure = new_figure(7.6, 4.0)
    panel = figure.subplots()
    for number, (name, text) in enumerate(TITLES.items()):
        points = [(step, scores[name]) for step, scores in sorted(by_step.items()) if name in scores]
        if len(points) > 1 or len(by_step) == 1:
            steps, values = zip(*points, strict=True)
            style: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "marker": MARKERS[number]}
            panel.plot(steps, values, label=text, markersize=5, linewidth=1.4, **style)
            if name != PLANE:
                shuffled = [scores.get(name + SHUFFLED, np.nan) for _, scores in sorted(by_step.items())]
                label = f"{text.split(', ')[1]}, shuffled labels"
                panel.plot(steps, shuffled, color=COLOURS[number], linestyle=":", linewidth=1.2, label=label)
    panel.axhline(0, color="#888888", linewidth=0.7)
    panel.set_xlabel("optimizer steps", fontsize=SMALL)
    panel.set_ylabel("silhouette score", fontsize=SMALL)
    heading = f"Silhouette of the k-mer embeddings, grouped by their two central bases:\n{title}"
    panel.set_title(heading, fontsize=NORMAL + 1, loc="left", fontweight="bold")
    panel.tick_params(labelsize=SMALL)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def parse_steps(text: str, saved: Sequence[int]) -> list[int]:
    """Return the sorted steps in the value of `--steps`, e.g. "1000,2000".

    Raise `ConfigError` if the text is not a list of integers, or if a step has no checkpoint.
    """
    try:
        steps = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(f"--steps {text}: not a list of integers; separate steps by commas, e.g. 1000,2000") from None
    if absent := [step for step in steps if step not in saved]:
        raise ConfigError(f"--steps {absent[0]}: no checkpoint of this step; choose from {', '.join(map(str, saved))}")
    return steps
