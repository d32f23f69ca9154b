"""Comparison of runs by the results of `analyze embeddings` and `analyze attention`. Torch-free."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.analysis.figures import COLOURS, LINES, MARKERS, NORMAL, SMALL, new_figure
from dnabert_rm.analysis.kmer_map import COSINE, SHUFFLED
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY_LAYER = {
    "entropy_share": "attention: entropy / log L",
    "top5_mass": "attention on the top 5\ntokens of each query",
    "top5_mass_of_window": "attention on the top 5\ntokens of the window",
}
"""Panel titles of the measures per layer, keyed as in `attention.json`."""
COLUMNS = ("run", "what", "at", "value")


@dataclass(frozen=True)
class Measured:
    """Embedding and attention measures of one run."""

    name: str
    silhouettes: list[tuple[int, float]]
    """Pairs (step, score). The score is the silhouette minus the silhouette of shuffled labels."""
    layers: list[dict[str, float]]
    """One dict per layer, keyed like `BY_LAYER`."""


def read_measured(folder: Path, name: str) -> Measured:
    """Read `embeddings.json` and `attention.json` in a folder. Raise `DataError` if a file is missing or damaged.

    Each returned silhouette score is the score of the k-mer groups minus the score of shuffled groups. With many
    groups, the score of shuffled groups is below 0.
    """
    embeddings, attention = (_read(folder, kind) for kind in ("embeddings", "attention"))
    try:
        silhouettes = [
            (int(row["step"] or 0), row[COSINE] - row[COSINE + SHUFFLED]) for row in embeddings["silhouettes"]
        ]
        layers = [{key: float(layer[key]) for key in BY_LAYER} for layer in attention["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}: embeddings.json or attention.json can't be read ({error!r}); "
            "run `dnabert-rm analyze embeddings` and `dnabert-rm analyze attention` again"
        ) from None
    return Measured(name, silhouettes, layers)


def _read(folder: Path, kind: str) -> Any:
    rerun = f"run `dnabert-rm analyze {kind}` on that run"
    return read_json(folder / f"{kind}.json", advice=f"{rerun} again", missing=f"{rerun} first")


def compare_csv(runs: Sequence[Measured]) -> str:
    """Return the plotted values as CSV text.

    The column `at` contains the step for silhouette scores, and the layer for attention measures.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        writer.writerows((run.name, "silhouette_above_chance", *point) for point in run.silhouettes)
        for number, layer in enumerate(run.layers, 1):
            writer.writerows((run.name, key, number, value) for key, value in layer.items())
    return stream.getvalue()


def compare_figure(runs: Sequence[Measured]) -> Figure:
    """Plot one panel per measure, with one line per run. Raise `ConfigError` if matplotlib is not installed."""
    figure = new_figure(11, 3.9)
    panels = figure.subplots(1, 1 + len(BY_LAYER), width_ratios=[1.7, *[1] * len(BY_LAYER)])
    for number, run in enumerate(runs):
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": LINES[number % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.4,
        }
        panels[0].plot(*zip(*run.silhouettes, strict=True), label=run.name, **style)
        layers = range(1, len(run.layers) + 1)
        for panel, key in zip(panels[1:], BY_LAYER, strict=True):
            panel.plot(layers, [layer[key] for layer in run.layers], **style)
            panel.set_xticks(layers)
    panels[0].axhline(0, color="#888888", linewidth=0.7)
    titles = ["embeddings by the two central bases:\nsilhouette above shuffled labels (cosine)", *BY_LAYER.values()]
    axes = ["optimizer steps", *["layer"] * len(BY_LAYER)]
    for panel, title, axis in zip(panels, titles, axes, strict=True):
        panel.set_title(title, fontsize=SMALL, loc="left")
        panel.set_xlabel(axis, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(5, len(runs)), fontsize=NORMAL, frameon=False)
    return figure
