"""How well the k-mer embeddings group by their two central bases: silhouette scores and a t-SNE plane."""

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
"""Points of a map: all k-mers up to k = 6, a sample of them above."""
COSINE, EUCLIDEAN, PLANE = "silhouette_cosine", "silhouette_euclidean", "silhouette_tsne"
SHUFFLED = "_shuffled"
"""Behind the name of a score: the same with the labels dealt out anew, which is below 0 for many groups."""
METRICS = ("euclidean", "cosine")
TITLES = {
    COSINE: "embedding space, cosine distance",
    EUCLIDEAN: "embedding space, Euclidean distance",
    PLANE: "t-SNE plane, Euclidean distance",
}


@dataclass(frozen=True)
class KmerMap:
    """Embedded k-mers: `ids` (N,) int64 of the vocabulary, `labels` (N,) int64 0 … 15, `plane` (N, 2) of t-SNE or None.

    A label is 4 × the code of the first central base + that of the second, codes in the order A, T, C, G.
    """

    k: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: dict[str, float]
    """Silhouette scores over the labels, -1 … 1, by `COSINE`, `EUCLIDEAN` and `PLANE`."""
    plane: NDArray[np.float64] | None = None
    perplexity: float | None = None
    """Of t-SNE; at most a third of the points."""


def central_bases(k: int) -> tuple[int, int]:
    """Places of the two central bases of a k-mer, 0-based: 2 and 3 of 6; for an odd k the middle and the next."""
    return (k - 1) // 2, (k - 1) // 2 + 1


def central_labels(ids: NDArray, k: int) -> NDArray[np.int64]:
    """The label of each k-mer id, (N,) → (N,), as `KmerMap` has them."""
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
    """Score, and lay out in a plane where `plane` says so, the embeddings of k-mers.

    Args: `matrix` (V, H) the embeddings of the vocabulary, special tokens first, V ≥ 5 + 4^k (more is padding);
    `metric` and `perplexity` are t-SNE's (scikit-learn); of more than `max_kmers` k-mers a random sample is taken.
    Raises `ConfigError` where the matrix has too few rows, or values that are not finite.
    """
    from sklearn.metrics import silhouette_score

    if len(matrix) < NUM_SPECIAL + 4**k:
        raise ConfigError(f"{len(matrix)} embeddings are fewer than the {NUM_SPECIAL + 4**k} tokens of k = {k}")
    chosen = np.arange(4**k)
    if len(chosen) > max_kmers:
        chosen = np.sort(random.permutation(random.key(seed, "embedded k-mers"), len(chosen))[:max_kmers])
    ids = NUM_SPECIAL + chosen
    points, labels = np.asarray(matrix, dtype=np.float64)[ids], central_labels(ids, k)
    if not np.isfinite(points).all():
        raise ConfigError("the embeddings hold values that are not finite; take an earlier checkpoint")
    if len(set(labels.tolist())) >= len(labels):
        raise ConfigError(f"{len(labels)} k-mers are too few for {len(set(labels.tolist()))} groups; raise --points")
    shuffled = labels[random.permutation(random.key(seed, "shuffled labels"), len(labels))]
    scores = {
        name + suffix: float(silhouette_score(points, some, metric=distance))
        for suffix, some in (("", labels), (SHUFFLED, shuffled))
        for name, distance in ((COSINE, "cosine"), (EUCLIDEAN, "euclidean"))
    }
    if not plane:
        return KmerMap(k, ids, labels, scores)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    where = _tsne(points, metric, perplexity, seed)
    scores[PLANE] = float(silhouette_score(where, labels))
    return KmerMap(k, ids, labels, scores, where, perplexity)


def _tsne(points: NDArray, metric: str, perplexity: float, seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    return TSNE(metric=metric, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)


def map_csv(found: KmerMap) -> str:
    """The plane as a table: k-mer, its central bases, x and y."""
    assert found.plane is not None
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["kmer", "central_bases", "x", "y"])
    for codes, label, (x, y) in zip(kmer_codes(found.ids, found.k), found.labels, found.plane, strict=True):
        writer.writerow([codes_to_bases(codes).decode(), pair_name(int(label)), f"{x:.5g}", f"{y:.5g}"])
    return stream.getvalue()


def pair_name(label: int) -> str:
    """ "AT" for label 1."""
    return BASE_ORDER[label // 4] + BASE_ORDER[label % 4]


def map_figure(found: KmerMap, title: str) -> Figure:
    """t-SNE plane: the colour is the first central base, the mark the second; the silhouettes in the title."""
    assert found.plane is not None
    figure = new_figure(7.6, 6.6)
    panel = figure.subplots()
    for label in range(16):
        own = found.plane[found.labels == label]
        looks: dict[str, Any] = {"color": COLOURS[label // 4], "marker": MARKERS[label % 4], "s": _size(len(found.ids))}
        panel.scatter(own[:, 0], own[:, 1], alpha=0.75, linewidths=0, **looks)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_aspect("equal", adjustable="datalim")
    panel.set_xlabel("t-SNE 1", fontsize=SMALL)
    panel.set_ylabel("t-SNE 2", fontsize=SMALL)
    panel.text(0.0, 1.0, _score_text(found), transform=panel.transAxes, va="bottom", fontsize=NORMAL, linespacing=1.5)
    panel.set_title(title, fontsize=NORMAL + 2, loc="left", fontweight="bold", pad=44)
    _base_legends(figure, found.k)
    return figure


def _score_text(found: KmerMap) -> str:
    shown, total = len(found.ids), 4**found.k
    count = f"{total:,} {found.k}-mers" if shown == total else f"{shown:,} of {total:,} {found.k}-mers"
    scores = found.scores
    chance = f"{scores[COSINE + SHUFFLED]:.3f} and {scores[EUCLIDEAN + SHUFFLED]:.3f}"
    return (
        f"{count}; silhouette by the two central bases: t-SNE plane {scores[PLANE]:.3f};\n"
        f"embedding space {scores[COSINE]:.3f} (cosine), {scores[EUCLIDEAN]:.3f} (Euclidean); "
        f"labels shuffled {chance}"
    )


def _size(num_points: int) -> float:
    """Area of a mark in square points: large where there are few."""
    return float(np.clip(16000 / num_points, 7, 45))


def _base_legends(figure: Figure, k: int) -> None:
    """Two lists: which colour is which first central base, and which mark which second one."""
    from matplotlib.lines import Line2D

    names = [f"base {place + 1} of {k}" for place in central_bases(k)]
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
    """Silhouette scores against the steps of the checkpoints; of t-SNE planes only where several were made."""
    figure = new_figure(7.6, 4.0)
    panel = figure.subplots()
    for number, (name, text) in enumerate(TITLES.items()):
        points = [(step, scores[name]) for step, scores in sorted(by_step.items()) if name in scores]
        if len(points) > 1 or len(by_step) == 1:
            steps, values = zip(*points, strict=True)
            looks: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "marker": MARKERS[number]}
            panel.plot(steps, values, label=text, markersize=5, linewidth=1.4, **looks)
            by_chance = [scores.get(name + SHUFFLED, np.nan) for _, scores in sorted(by_step.items())]
            if name != PLANE:
                panel.plot(steps, by_chance, color=COLOURS[number], linestyle=":", linewidth=1.2,
                           label=f"{text.split(', ')[1]}, labels shuffled")  # fmt: skip
    panel.axhline(0, color="#888888", linewidth=0.7)
    panel.set_xlabel("optimizer steps done", fontsize=SMALL)
    panel.set_ylabel("silhouette by the two central bases", fontsize=SMALL)
    panel.set_title(title, fontsize=NORMAL + 2, loc="left", fontweight="bold")
    panel.tick_params(labelsize=SMALL)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def parse_steps(text: str, saved: Sequence[int]) -> list[int]:
    """The steps that a flag names, e.g. "1000,2000"; `ConfigError` for one that has no checkpoint."""
    try:
        steps = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(f"--steps {text}: steps with commas between them, e.g. 1000,2000") from None
    if absent := [step for step in steps if step not in saved]:
        raise ConfigError(f"--steps {absent[0]}: no checkpoint of that step; there are {', '.join(map(str, saved))}")
    return steps
