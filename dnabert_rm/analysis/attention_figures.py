"""Pictures of attention: numbers by layer, the mean map of every layer, what [CLS] attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnabert_rm.analysis.attention import TOP, LayerAttention
from dnabert_rm.analysis.figures import COLOURS, NORMAL, SMALL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_COLOUR_MAP = "viridis"


def layers_figure(layers: Sequence[LayerAttention], title: str) -> Figure:
    """Entropy as a share of log L and the mass on 5 tokens, by layer: the mean over heads, and a mark a head."""
    longest = math.log(layers[0].mean_map.shape[0])
    numbers = np.arange(1, len(layers) + 1)
    figure = new_figure(8.6, 4.0)
    left, right = figure.subplots(1, 2)
    _draw_heads(left, numbers, [layer.entropy / longest for layer in layers], COLOURS[0], "o", "-", None)
    left.set_ylabel("entropy / log L", fontsize=SMALL)
    left.set_title(f"entropy (1 is uniform: log L = {longest:.2f} nats)", fontsize=NORMAL, loc="left")
    one, all_together = [layer.top_mass for layer in layers], [layer.top_mass_of_window for layer in layers]
    _draw_heads(right, numbers, one, COLOURS[1], "s", "-", f"each query's own {TOP}")
    _draw_heads(right, numbers, all_together, COLOURS[2], "^", "--", f"the window's {TOP}")
    right.set_ylabel("share of the attention", fontsize=SMALL)
    right.set_title(f"mass on the {TOP} most attended tokens", fontsize=NORMAL, loc="left")
    for panel in (left, right):
        panel.set_ylim(0, 1.04)
        panel.set_xlim(0.5, len(layers) + 0.5)
        panel.set_xticks(numbers if len(layers) <= 16 else numbers[:: math.ceil(len(layers) / 12)])
        panel.set_xlabel("layer", fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", ncols=2, fontsize=SMALL, frameon=False)
    figure.suptitle(f"{title}\nlines: mean over heads; small marks: heads", fontsize=NORMAL, x=0.01, ha="left")
    return figure


def _draw_heads(panel: Any, numbers: Any, by_head: Any, colour: str, marker: str, line: Any, label: str | None) -> None:
    for number, values in zip(numbers, by_head, strict=True):
        panel.plot([number] * len(values), values, marker, color=colour, markersize=3, alpha=0.45, linestyle="none")
    means = [values.mean() for values in by_head]
    panel.plot(numbers, means, linestyle=line, marker=marker, color=colour, markersize=6, linewidth=1.4, label=label)


def maps_figure(layers: Sequence[LayerAttention], title: str) -> Figure:
    """The mean map of every layer, one logarithmic scale of colours for all."""
    from matplotlib.colors import LogNorm

    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    length = layers[0].mean_map.shape[0]
    figure = new_figure(2.75 * columns + 0.9, 2.75 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    # Uniform attention is 1 / L; what lies further below it than it could lie above is all the same colour.
    colours = LogNorm(vmin=0.1 / length, vmax=max(float(layer.mean_map.max()) for layer in layers))
    for number, (panel, layer) in enumerate(zip(panels, layers, strict=False), 1):
        image = panel.imshow(layer.mean_map, norm=colours, cmap=_COLOUR_MAP, interpolation="nearest")
        share = layer.entropy.mean() / math.log(length)
        head = f"layer {number}: entropy {share:.2f} log L,\ntop {TOP} {layer.top_mass.mean():.2f}"
        panel.set_title(head, fontsize=SMALL, loc="left")
        panel.tick_params(labelsize=7)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=panels.tolist(), shrink=0.8, aspect=30, extend="min")
    bar.set_label(f"weight (log scale; uniform is {1 / length:.2g})", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7)
    figure.supxlabel("attended token (0 is [CLS])", fontsize=SMALL)
    figure.supylabel("attending token", fontsize=SMALL)
    figure.suptitle(f"{title}: mean over heads and windows", fontsize=NORMAL, x=0.01, ha="left")
    return figure


def cls_figure(layers: Sequence[LayerAttention], title: str) -> Figure:
    """What [CLS] attends to: a row a head, layers from top to bottom, a column a token."""
    from matplotlib.colors import LogNorm

    length, heads = layers[0].mean_map.shape[0], layers[0].cls_map.shape[0]
    weights = np.concatenate([layer.cls_map for layer in layers])
    figure = new_figure(9.0, 1.5 + min(9.0, max(1.6, 0.09 * len(weights))))
    panel = figure.subplots()
    colours = LogNorm(vmin=0.1 / length, vmax=float(weights.max()))
    image = panel.imshow(weights, norm=colours, cmap=_COLOUR_MAP, aspect="auto", interpolation="nearest")
    for edge in range(heads, len(weights), heads):
        panel.axhline(edge - 0.5, color="white", linewidth=1.5)
    every = math.ceil(len(layers) / 24)
    shown = range(0, len(layers), every)
    panel.set_yticks([heads * n + (heads - 1) / 2 for n in shown], [f"layer {n + 1}" for n in shown], fontsize=SMALL)
    panel.tick_params(axis="x", labelsize=SMALL)
    panel.set_xlabel("attended token (0 is [CLS])", fontsize=SMALL)
    bar = figure.colorbar(image, ax=panel, extend="min", aspect=30)
    bar.set_label(f"weight (log scale; uniform is {1 / length:.2g})", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"{title}: attention of [CLS], a row a head, mean over windows", fontsize=NORMAL, x=0.01, ha="left")
    return figure
