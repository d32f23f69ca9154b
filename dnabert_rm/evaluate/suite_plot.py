"""Plot of the scores of a suite, by data set and task, with published means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.evaluate.suite import Suite
from dnabert_rm.evaluate.suite_results import ARMS, IN_SUITE, OTHERS, STAND_INS, TableRow, published_rows
from dnabert_rm.finetune.finetune_settings import METRIC_TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour and marker of each arm. Okabe and Ito's colours are distinct for people with red-green colour blindness.
ARM_STYLES = dict(zip(ARMS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")), strict=True))
PUBLISHED_MARKERS = "vXPh*<>dp"
FAMILIES_PANEL = "families"
_PANEL_INCHES = 0.75
_ROW_INCHES = 0.12
_ARM_INCHES = 0.17


def plot_table(path: Path, suite: Suite, rows: Sequence[TableRow], families: Sequence[TableRow]) -> None:
    """Write the plot of the scores to `path`. Raise `ImportError` if matplotlib is not installed."""
    table_figure(suite, rows, families).savefig(path, dpi=150, metadata={"Software": None})


def _panel_titles(suite: Suite) -> dict[str, str]:
    stand_ins = f"Stand-ins (dev → test): trained on dev because train is missing; not {suite.name} scores"
    return {
        IN_SUITE: f"{suite.name} data sets",
        FAMILIES_PANEL: "Means of complete tasks" + (", with published means" if suite.published else ""),
        STAND_INS: stand_ins,
        OTHERS: "Other data sets, default settings",
    }


def table_figure(suite: Suite, rows: Sequence[TableRow], families: Sequence[TableRow]) -> Figure:
    """Return a figure with one panel per group of scores, such as data sets of the suite or task means.

    Raise `ImportError` if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    titles = _panel_titles(suite)
    panels = {
        name: list(families) if name == FAMILIES_PANEL else [row for row in rows if row.group == name]
        for name in titles
    }
    panels = {name: panel_rows for name, panel_rows in panels.items() if panel_rows}
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    published = published_rows(families, suite)
    # The panel of families has one more line per row, below the arms, for the published means.
    num_lines = {name: len(arms) + (name == FAMILIES_PANEL and bool(published)) for name in panels}
    heights = [
        _PANEL_INCHES + len({row.name for row in panel_rows}) * (_ROW_INCHES + _ARM_INCHES * num_lines[name])
        for name, panel_rows in panels.items()
    ]
    figure = Figure(figsize=(8.5, 0.9 + sum(heights)), layout="constrained")
    metrics = Counter(row.metric for row in rows)
    main_metric = metrics.most_common(1)[0][0]
    markers = dict(zip(suite.published, cycle(PUBLISHED_MARKERS), strict=False))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, panel_rows) in zip(grid, panels.items(), strict=True):
        _plot_panel(axes, panel_rows, arms, num_lines[name], main_metric)
        if name == FAMILIES_PANEL:
            _plot_published(axes, panel_rows, published, markers, len(arms))
        axes.set_title(titles[name], fontsize=10, loc="left", fontweight="bold")
    grid[0].set_xlim(score_limits([*rows, *families], [value for *_, value in published]))
    others = [f"or {METRIC_TITLES[metric]} where the label says so" for metric in metrics if metric != main_metric]
    grid[-1].set_xlabel(", ".join([f"test score × 100: {METRIC_TITLES[main_metric]}", *others]), fontsize=9)
    shown = {method: markers[method] for method, *_ in published}
    handles = _legend(arms, shown, any(len(row.scores) > 1 for row in rows))
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


def _y_of(names: Sequence[str], name: str, line: int, num_lines: int) -> float:
    """Return the y position of one of the lines that a row consists of."""
    return names.index(name) + 0.8 * ((line + 0.5) / num_lines - 0.5)


def _plot_published(
    axes: Any,
    rows: Sequence[TableRow],
    published: Sequence[tuple[str, str, float]],
    markers: Mapping[str, str],
    num_arms: int,
) -> None:
    """Plot the published means of the families in `rows`, below the arms."""
    names = list(dict.fromkeys(row.name for row in rows))
    style: dict[str, Any] = {"color": "#444444", "markersize": 7, "markeredgewidth": 0}
    for method, family, value in published:
        axes.plot(value, _y_of(names, family, num_arms, num_arms + 1), markers[method], **style)


def _plot_panel(axes: Any, rows: Sequence[TableRow], arms: Sequence[str], num_lines: int, main_metric: str) -> None:
    names = list(dict.fromkeys(row.name for row in rows))
    for row in rows:
        colour, marker = ARM_STYLES[row.arm]
        y = _y_of(names, row.name, arms.index(row.arm), num_lines)
        if len(row.scores) > 1:
            axes.plot(list(row.scores.values()), [y] * len(row.scores), "|", color=colour, markersize=6, alpha=0.6)
        axes.errorbar(
            row.mean, y, xerr=row.half_width, fmt=marker, color=colour, markersize=5, capsize=3, linewidth=1.3
        )
        text = f"{row.mean:.1f}" + ("" if row.half_width is None else f" ± {row.half_width:.1f}")
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=colour)
    labels = [_label(next(row for row in rows if row.name == name), main_metric) for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#eeeeee", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: TableRow, main_metric: str) -> str:
    """Return the y-axis label of a row: the row's name, metric and task.

    The metric is omitted if it is the plot's main metric. The task is omitted if the row's name contains the task.
    """
    metric = "" if row.metric == main_metric else f" ({METRIC_TITLES[row.metric]})"
    task = row.family or ""
    return f"{row.name}{metric}" + (f"\n{task}" if task.lower() not in row.name.lower() else "")


def _legend(arms: Sequence[str], published: Mapping[str, str], several_seeds: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    marker_only: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = []
    for arm in arms:
        colour, marker = ARM_STYLES[arm]
        handles.append(Line2D([], [], color=colour, marker=marker, label=arm, **marker_only))
    if several_seeds:
        handles.append(Line2D([], [], color="#888888", marker="|", label="one seed", **marker_only))
        handles.append(Line2D([], [], color="#888888", linewidth=1.3, label="95 % interval of the mean"))
    handles += [
        Line2D([], [], color="#444444", marker=marker, label=f"{method}, published", **marker_only)
        for method, marker in published.items()
    ]
    return handles
