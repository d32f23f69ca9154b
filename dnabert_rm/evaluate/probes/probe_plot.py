"""Plot of the dev scores of probes by layer, one panel per data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dnabert_rm.evaluate.data_sets import STAND_IN
from dnabert_rm.evaluate.probes.probe_results import Measurement, model_titles
from dnabert_rm.finetune.finetune_settings import METRIC_TITLES
from dnabert_rm.utils.files import atomic_file

# Okabe and Ito's colours are distinct for people with red-green colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
BASELINE_STYLES = {"kmers": ("k-mer counts", "--"), "cnn": ("CNN from scratch", ":")}
COLUMNS = 4


def plot_probes(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write the plot to `path`. Raise `ImportError` if matplotlib is not installed.

    Each panel shows one data set and number of labels: dev score × 100 by layer, averaged over seeds, and the dev
    scores of the baselines as horizontal lines.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int], list[Measurement]] = {}
    for item in measurements:
        panels.setdefault((item.data_set, item.labels_per_class), []).append(item)
    rows = math.ceil(len(panels) / COLUMNS)
    columns = min(COLUMNS, len(panels))
    figure = Figure(figsize=(1 + 2.7 * columns, 0.8 + 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    titles = model_titles(list(dict.fromkeys(item.model for item in measurements if item.method == "probe")))
    for axes, group in zip(grid, panels.values(), strict=False):
        _plot_panel(axes, group, titles)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("layer (0 is the input of the first layer)", fontsize=9)
    figure.supylabel("dev score × 100", fontsize=9)
    handles = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles=list(handles.values()), labels=list(handles), loc="outside upper center", ncols=4, fontsize=8,
        frameon=False,
    )  # fmt: skip
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def _plot_panel(axes: Any, group: Sequence[Measurement], titles: dict[str, str]) -> None:
    first = group[0]
    num_lines = 0
    for item in group:
        if item.method in BASELINE_STYLES:
            label, style = BASELINE_STYLES[item.method]
            axes.axhline(item.dev, color="#444444", linestyle=style, linewidth=1, label=label)
            continue
        for pooling, scores in by_layer(item).items():
            label = titles[item.model] + ("" if pooling == "mean" else f", {pooling}")
            colour, marker = COLOURS[num_lines % len(COLOURS)], MARKERS[num_lines % len(MARKERS)]
            line = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
            axes.plot(list(scores), list(scores.values()), label=label, **line)
            axes.set_xticks(list(scores) if len(scores) < 10 else list(scores)[:: len(scores) // 6])
            num_lines += 1
    labels = f", {first.labels_per_class} labels per class" if first.labels_per_class else ""
    stand_in = f"\n{STAND_IN}" if first.stand_in else ""
    metric = METRIC_TITLES[first.metric]
    axes.set_title(f"{first.data_set} ({metric}){labels}{stand_in}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def by_layer(item: Measurement) -> dict[str, dict[int, float]]:
    """Return a probe's mean dev score × 100 over seeds, by pooling and layer."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fit in item.fits.values():
        for candidate in fit["by_candidate"]:
            found[candidate["pooling"]][candidate["layer"]].append(100 * candidate["dev"])
    return {pooling: {layer: fmean(scores) for layer, scores in layers.items()} for pooling, layers in found.items()}
