"""Runs beside each other by what `analyze embeddings` and `analyze attention` measured of each. Torch-free."""

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
    "entropy_share": "entropy of the attention / log L",
    "top5_mass": "mass on each query's own 5 tokens",
    "top5_mass_of_window": "mass on the window's 5 tokens",
}
COLUMNS = ("run", "what", "at", "value")


@dataclass(frozen=True)
class Measured:
    """What was measured of one run: `silhouettes` above chance by step, and each number of `BY_LAYER` by layer."""

    name: str
    silhouettes: list[tuple[int, float]]
    layers: list[dict[str, float]]


def read_measured(folder: Path, name: str) -> Measured:
    """From a folder with `embeddings.json` and `attention.json`; `DataError` where one is missing or no such file.

    The silhouette is that of the labels less that of the same labels shuffled, whose level is below 0.
    """
    embeddings, attention = (_read(folder, kind) for kind in ("embeddings", "attention"))
    try:
        silhouettes = [
            (int(row["step"] or 0), row[COSINE] - row[COSINE + SHUFFLED]) for row in embeddings["silhouettes"]
        ]
        layers = [{key: float(layer[key]) for key in BY_LAYER} for layer in attention["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: what `dnabert-rm analyze` wrote there can't be read ({error!r}); "
                        "run it again") from None  # fmt: skip
    return Measured(name, silhouettes, layers)


def _read(folder: Path, kind: str) -> Any:
    rerun = f"run `dnabert-rm analyze {kind}` on that run"
    return read_json(folder / f"{kind}.json", advice=f"{rerun} again", missing=f"{rerun} first")


def compare_csv(runs: Sequence[Measured]) -> str:
    """What is drawn as a table; `at` is a step or the number of a layer."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        writer.writerows((run.name, "silhouette_above_chance", *point) for point in run.silhouettes)
        for number, layer in enumerate(run.layers, 1):
            writer.writerows((run.name, key, number, value) for key, value in layer.items())
    return stream.getvalue()


def compare_figure(runs: Sequence[Measured]) -> Figure:
    """One panel a measure, one line a run. `ConfigError` without matplotlib."""
    figure = new_figure(11, 3.9)
    panels = figure.subplots(1, 1 + len(BY_LAYER), width_ratios=[1.7, *[1] * len(BY_LAYER)])
    for number, run in enumerate(runs):
        looks: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)], "markersize": 5, "linewidth": 1.4,
        }  # fmt: skip
        panels[0].plot(*zip(*run.silhouettes, strict=True), label=run.name, **looks)
        layers = range(1, len(run.layers) + 1)
        for panel, key in zip(panels[1:], BY_LAYER, strict=True):
            panel.plot(layers, [layer[key] for layer in run.layers], **looks)
            panel.set_xticks(layers)
    panels[0].axhline(0, color="#888888", linewidth=0.7)
    titles = ["embeddings by the two central bases:\nsilhouette above chance (cosine)", *BY_LAYER.values()]
    for panel, title, axis in zip(panels, titles, ["optimizer steps done", *["layer"] * len(BY_LAYER)], strict=True):
        panel.set_title(title, fontsize=SMALL, loc="left")
        panel.set_xlabel(axis, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(5, len(runs)), fontsize=NORMAL, frameon=False)
    return figure
