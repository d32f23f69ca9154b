"""t-SNE map of the embeddings of labelled sequences, and how often near neighbours have the same label."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import COLOURS, MARKERS, NORMAL, SMALL, new_figure
from dnabert_rm.finetune.tables import SEQUENCE_COLUMN, LabelledTable, read_labelled
from dnabert_rm.finetune.trained_tokens import is_trained_overlapping
from dnabert_rm.inference.embed_sequences import embed
from dnabert_rm.inference.inference_settings import EmbeddingSettings
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_NEIGHBOURS = 10
MIN_ROWS = NUM_NEIGHBOURS + 2
MAX_LABELS = 7
"""Labels with a colour of their own. Rarer ones share the last colour."""
OTHERS = "other labels"
COLUMNS = ("line", "label", "x", "y")
A_LITTLE, CLEARLY = 0.1, 0.5
"""Of the way from chance to a perfect agreement of neighbours."""


@dataclass(frozen=True)
class SequenceMap:
    """Embeddings of N labelled sequences in the plane."""

    plane: NDArray[np.float64]
    """(N, 2) t-SNE coordinates."""
    labels: list[str]
    lines: list[int]
    """Line of each sequence in the table."""
    num_rows: int
    """Rows of the table, of which N are drawn."""
    same_label: float
    """Share of the `NUM_NEIGHBOURS` nearest neighbours in embedding space that have a sequence's label."""
    expected: float
    """The same share if labels had nothing to do with embeddings."""
    standard_error: float
    """Standard error of `same_label` over sequences."""

    @property
    def sentence(self) -> str:
        """What the map shows, in a sentence."""
        excess = self.same_label - self.expected
        share = excess / (1 - self.expected)
        if excess <= 3 * self.standard_error:
            verdict = "so the embeddings don't separate the labels"
        else:
            how = "a little" if share < A_LITTLE else "in part" if share < CLEARLY else "clearly"
            verdict = f"so the embeddings separate the labels {how}"
        return (
            f"{self.same_label:.1%} of the {NUM_NEIGHBOURS} nearest neighbours of a sequence have its label; "
            f"{self.expected:.1%} would by chance, {verdict}"
        )


def map_sequences(
    model: Path,
    path: Path,
    label_column: str,
    *,
    layer: int | None = None,
    max_rows: int = 2000,
    perplexity: float = 30.0,
    seed: int = 0,
) -> SequenceMap:
    """Embed the sequences of a table by the mean over their tokens, and map them by t-SNE.

    If the table has more than `max_rows` rows, a random sample is used. `layer` is as in `embed`. Sequences without a
    known k-mer are left out. Raises `DataError` if fewer than `MIN_ROWS` sequences or one label are left.
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    table = read_labelled(path, (label_column,))
    chosen = np.sort(random.permutation(random.key(seed, "mapped sequences"), len(table))[:max_rows])
    rows = table.rows(chosen)
    _check_labels(path, rows)
    vectors = embed_table(model, rows, layer)
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if len(known) < MIN_ROWS:
        raise DataError(f"{path}: {len(known)} sequences are too few for a map; pass a table with {MIN_ROWS} or more")
    rows, points = rows.rows(known), StandardScaler().fit_transform(vectors[known])
    _check_labels(path, rows)
    plane = TSNE(perplexity=min(perplexity, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    return SequenceMap(plane, rows.labels, rows.lines, len(table), *neighbour_agreement(points, rows.labels))


def _check_labels(path: Path, rows: LabelledTable) -> None:
    """Raise `DataError` if all rows have the same label."""
    if len(found := set(rows.labels)) == 1:
        raise DataError(
            f"{path}: all {len(rows)} sequences have the label {found.pop()}; pass a table with two labels or more, or "
            "another --label-column"
        )


def embed_table(model: Path, rows: LabelledTable, layer: int | None) -> NDArray[np.float32]:
    """Return the embedding of each sequence, (N, hidden size); NaN without a known k-mer.

    Tokens have the stride that the model was trained with.
    """
    overlapping = is_trained_overlapping(model)
    with tempfile.TemporaryDirectory(prefix="dnabert-rm-") as folder:
        table, output = Path(folder) / "rows.csv", Path(folder) / "rows.npy"
        table.write_text("\n".join([SEQUENCE_COLUMN, *rows.sequences]) + "\n", encoding="utf-8")
        embed(EmbeddingSettings(model=model, input=str(table), output=output, layer=layer, overlapping=overlapping))
        vectors: NDArray[np.float32] = np.load(output)
    return vectors


def neighbour_agreement(points: NDArray, labels: Sequence[str]) -> tuple[float, float, float]:
    """Return how often near neighbours have the same label, how often by chance, and the standard error of the first.

    `points` (N, D) are standardized embeddings; neighbours are nearest in Euclidean distance.
    """
    from sklearn.neighbors import NearestNeighbors

    codes = np.unique(np.array(labels), return_inverse=True)[1].reshape(-1)
    search = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit(points)
    neighbours = search.kneighbors(return_distance=False)  # a point is not its own neighbour
    agreement = (codes[neighbours] == codes[:, None]).mean(axis=1)
    counts = np.bincount(codes)
    expected = float((counts * (counts - 1)).sum() / (len(codes) * (len(codes) - 1)))
    return float(agreement.mean()), expected, float(agreement.std(ddof=1) / np.sqrt(len(codes)))


def sequences_csv(found: SequenceMap) -> str:
    """Return the map as CSV text with the columns line, label, x and y."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line, label, (x, y) in zip(found.lines, found.labels, found.plane, strict=True):
        writer.writerow([line, label, f"{x:.5g}", f"{y:.5g}"])
    return stream.getvalue()


def sequences_figure(found: SequenceMap, title: str) -> Figure:
    """Plot the map, coloured by label, with the sentence above it."""
    figure = new_figure(7.6, 6.6)
    panel = figure.subplots()
    common = [label for label, _ in Counter(found.labels).most_common()]
    shown = common if len(common) <= MAX_LABELS else [*common[: MAX_LABELS - 1], OTHERS]
    group = np.array([label if label in shown else OTHERS for label in found.labels])
    for number, label in enumerate(shown):
        points = found.plane[group == label]
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number]}
        text = f"{label} ({len(points):,})"
        panel.scatter(points[:, 0], points[:, 1], s=14, alpha=0.6, linewidths=0, label=text, **style)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_aspect("equal", adjustable="datalim")
    panel.set_xlabel("t-SNE 1", fontsize=SMALL)
    panel.set_ylabel("t-SNE 2", fontsize=SMALL)
    count = f"{len(found.labels):,} of {found.num_rows:,} sequences"
    sentence = found.sentence.replace("; ", ";\n")
    panel.text(
        0.0, 1.0, f"{count}. {sentence}", transform=panel.transAxes, va="bottom", fontsize=NORMAL, linespacing=1.5
    )
    panel.set_title(title, fontsize=NORMAL + 1, loc="left", fontweight="bold", pad=44)
    figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure
