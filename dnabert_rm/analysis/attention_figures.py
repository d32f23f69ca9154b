"""Figures of attention: entropy and concentration per layer, mean maps, and the attention of [CLS]."""

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
    """Plot two attention statistics of each layer: entropy, and attention on the 5 most attended tokens.

    The entropy is divided by its maximum, log L for windows of L tokens. Lines show means over heads, and small marks
    show single heads.
    """
    max_entropy = math.log(layers[0].mean_map.shape[0])
    numbers = np.arange(1, len(layers) + 1)
    figure = new_figure(8.6, 4.0)
    left, right = figure.subplots(1, 2)
    _draw_heads(left, numbers, [layer.entropy / max_entropy for layer in layers], COLOURS[0], "o", "-", None)
    left.set_ylabel("entropy / log L", fontsize=SMALL)
    left.set_title(f"entropy of the attention (1: uniform, log L = {max_entropy:.2f} nats)", fontsize=SMALL, loc="left")
    of_query = [layer.top_mass for layer in layers]
    of_window = [layer.top_mass_of_window for layer in layers]
    _draw_heads(right, numbers, of_query, COLOURS[1], "s", "-", f"top {TOP} of each query")
    _draw_heads(right, numbers, of_window, COLOURS[2], "^", "--", f"top {TOP} of the window")
    right.set_ylabel("share of the attention", fontsize=SMALL)
    right.set_title(f"attention on the {TOP} most attended tokens", fontsize=SMALL, loc="left")
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
    figure.suptitle(
        f"Attention by layer: {title}\nlines: mean over heads; small marks: single heads",
        fontsize=NORMAL,
        x=0.01,
        ha="left",
    )
    return figure


def _draw_heads(panel: Any, numbers: Any, by_head: Any, colour: str, marker: str, line: Any, label: str | None) -> None:
    for number, values in zip(numbers, by_head, strict=True):
        panel.plot([number] * len(values), values, marker, color=colour, markersize=3, alpha=0.45, linestyle="none")
    means = [values.mean() for values in by_head]
    panel.plot(numbers, means, linestyle=line, marker=marker, color=colour, markersize=6, linewidth=1.4, label=label)


def maps_figure(layers: Sequence[LayerAttention], title: str) -> Figure:
    """Draw the mean attention map of every layer. All panels share one logarithmic colour scale."""
    from matplotlib.colors import LogNorm

    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    length = layers[0].mean_map.shape[0]
    figure = new_figure(2.75 * columns + 0.9, 2.75 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    # Uniform attention is 1 / L. All weights below 0.1 / L have the same colour.
    colours = LogNorm(vmin=0.1 / length, vmax=max(float(layer.mean_map.max()) for layer in layers))
    for number, (panel, layer) in enumerate(zip(panels, layers, strict=False), 1):
        image = panel.imshow(layer.mean_map, norm=colours, cmap=_COLOUR_MAP, interpolation="nearest")
        share = layer.entropy.mean() / math.log(length)
        text = f"layer {number}: entropy {share:.2f} log L,\ntop {TOP} {layer.top_mass.mean():.2f}"
        panel.set_title(text, fontsize=SMALL, loc="left")
        panel.tick_params(labelsize=7)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    _add_colour_bar(figure, image, panels.tolist(), length, shrink=0.8)
    figure.supxlabel("attended token (0 is [CLS])", fontsize=SMALL)
    figure.supylabel("attending token", fontsize=SMALL)
    figure.suptitle(f"Mean attention over heads and windows\n{title}", fontsize=NORMAL, x=0.01, ha="left")
    return figure


def cls_figure(layers: Sequence[LayerAttention], title: str) -> Figure:
    """Draw the attention of [CLS] as one image, with one column per token and one row per head of each layer.

    The heads of the first layer are at the top.
    """
    from matplotlib.colors import LogNorm

    length = layers[0].mean_map.shape[0]
    num_heads = layers[0].cls_map.shape[0]
    weights = np.concatenate([layer.cls_map for layer in layers])
    figure = new_figure(9.0, 1.5 + min(9.0, max(1.6, 0.09 * len(weights))))
    panel = figure.subplots()
    colours = LogNorm(vmin=0.1 / length, vmax=float(weights.max()))
    image = panel.imshow(weights, norm=colours, cmap=_COLOUR_MAP, aspect="auto", interpolation="nearest")
    for edge in range(num_heads, len(weights), num_heads):
        panel.axhline(edge - 0.5, color="white", linewidth=1.5)
    labelled = range(0, len(layers), math.ceil(len(layers) / 24))
    panel.set_yticks(
        [num_heads * n + (num_heads - 1) / 2 for n in labelled], [f"layer {n + 1}" for n in labelled], fontsize=SMALL
    )
    panel.tick_params(axis="x", labelsize=SMALL)
    panel.set_xlabel("attended token (0 is [CLS])", fontsize=SMALL)
    _add_colour_bar(figure, image, panel, length, shrink=1.0)
    figure.suptitle(
        f"Attention of [CLS], one row per head, mean over windows: {title}", fontsize=NORMAL, x=0.01, ha="left"
    )
    return figure


def _add_colour_bar(figure: Figure, image: Any, panels: Any, length: int, shrink: float) -> None:
    bar = figure.colorbar(image, ax=panels, shrink=shrink, aspect=30, extend="min")
    bar.set_label(f"attention weight (log scale; uniform: {1 / length:.2g})", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7)
