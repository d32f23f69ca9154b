"""Plot of the scores from `dnabert-rm gue`, by data set and task, with published means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.evaluate.gue_suite import DEFAULT_METRIC, METRIC_TITLES, PUBLISHED, family_of
from dnabert_rm.evaluate.results import ARMS, IN_GUE, OTHERS, STAND_INS, TableRow, published_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour and marker of each arm. Okabe and Ito's colours are distinct for people with red-green colour blindness.
ARM_STYLES = dict(zip(ARMS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")), strict=True))
PUBLISHED_MARKERS = dict(zip(PUBLISHED, "vXPh*", strict=True))
FAMILIES_PANEL = "families"
PANEL_TITLES = {
    IN_GUE: "GUE data sets",
    FAMILIES_PANEL: "Means of complete tasks, with published means",
    STAND_INS: "Stand-ins (dev → test): trained on dev because train is missing; not GUE scores",
    OTHERS: "Other data sets, default settings",
}
_PANEL_INCHES = 0.75
_ROW_INCHES = 0.12
_ARM_INCHES = 0.17


def plot_table(path: Path, rows: Sequence[TableRow], families: Sequence[TableRow]) -> None:
    """Write the plot of the scores to `path`. Raise `ImportError` if matplotlib is not installed."""
    table_figure(rows, families).savefig(path, dpi=150, metadata={"Software": None})


def table_figure(rows: Sequence[TableRow], families: Sequence[TableRow]) -> Figure:
    """Return a figure with one panel per group of scores, such as GUE data sets or task means.

    Raise `ImportError` if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = {
        name: list(families) if name == FAMILIES_PANEL else [row for row in rows if row.group == name]
        for name in PANEL_TITLES
    }
    panels = {name: panel_rows for name, panel_rows in panels.items() if panel_rows}
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    # The panel of families has one more line per row, below the arms, for the published means.
    num_lines = {name: len(arms) + (name == FAMILIES_PANEL) for name in panels}
    heights = [
        _PANEL_INCHES + len({row.name for row in panel_rows}) * (_ROW_INCHES + _ARM_INCHES * num_lines[name])
        for name, panel_rows in panels.items()
    ]
    figure = Figure(figsize=(8.5, 0.9 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, panel_rows) in zip(grid, panels.items(), strict=True):
        _plot_panel(axes, panel_rows, arms, num_lines[name])
        axes.set_title(PANEL_TITLES[name], fontsize=10, loc="left", fontweight="bold")
    grid[0].set_xlim(score_limits([*rows, *families], [value for *_, value in published_rows(families)]))
    grid[-1].set_xlabel("test score × 100: MCC, or macro F1 where the label says so", fontsize=9)
    handles = _legend(arms, bool(families), any(len(row.scores) > 1 for row in rows))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def score_limits(rows: Sequence[TableRow], published: Sequence[float]) -> tuple[float, float]:
    """Return the lower and upper limit of the x axis, in units of score × 100.

    The limits include all scores and are at least 20 apart. Confidence intervals extend the axis by at most 15 on each
    side.
    """
    scores = [*published, *(value for row in rows for value in row.scores.values())]
    ends = [row.mean + sign * (row.half_width or 0) for row in rows for sign in (-1, 1)]
    low = max(min(ends + scores), min(scores) - 15) - 2
    high = min(max(ends + scores), max(scores) + 15) + 2
    margin = max(0.0, 20 - (high - low)) / 2
    return low - margin, high + margin


def _plot_panel(axes: Any, rows: Sequence[TableRow], arms: Sequence[str], num_lines: int) -> None:
    names = list(dict.fromkeys(row.name for row in rows))

    def y_of(name: str, line: int) -> float:
        return names.index(name) + 0.8 * ((line + 0.5) / num_lines - 0.5)

    for row in rows:
        colour, marker = ARM_STYLES[row.arm]
        y = y_of(row.name, arms.index(row.arm))
        if len(row.scores) > 1:
            axes.plot(list(row.scores.values()), [y] * len(row.scores), "|", color=colour, markersize=6, alpha=0.6)
        axes.errorbar(
            row.mean, y, xerr=row.half_width, fmt=marker, color=colour, markersize=5, capsize=3, linewidth=1.3
        )
        text = f"{row.mean:.1f}" + ("" if row.half_width is None else f" ± {row.half_width:.1f}")
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=colour)
    if num_lines > len(arms):
        style: dict[str, Any] = {"color": "#444444", "markersize": 7, "markeredgewidth": 0}
        for model, family, value in published_rows(rows):
            axes.plot(value, y_of(family, len(arms)), PUBLISHED_MARKERS[model], **style)
    axes.set_yticks(range(len(names)), [_label(next(r for r in rows if r.name == name)) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#eeeeee", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: TableRow) -> str:
    """Return a label for the y axis, made of the name of the data set or task, the metric and the task.

    The metric is omitted for MCC. The task is omitted if the name contains the task.
    """
    metric = "" if row.metric == DEFAULT_METRIC else f" ({METRIC_TITLES[row.metric]})"
    task = family_of(row.name) or ""
    return f"{row.name}{metric}" + (f"\n{task}" if task.lower() not in row.name.lower() else "")


def _legend(arms: Sequence[str], published: bool, several_seeds: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    marker_only: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = []
    for arm in arms:
        colour, marker = ARM_STYLES[arm]
        handles.append(Line2D([], [], color=colour, marker=marker, label=arm, **marker_only))
    if several_seeds:
        handles.append(Line2D([], [], color="#888888", marker="|", label="one seed", **marker_only))
        handles.append(Line2D([], [], color="#888888", linewidth=1.3, label="95 % interval of the mean"))
    if published:
        handles += [
            Line2D([], [], color="#444444", marker=marker, label=f"{model}, published", **marker_only)
            for model, marker in PUBLISHED_MARKERS.items()
        ]
    return handles
