"""The picture of a `gue` table: a row a data set, a point an arm, published means beside complete families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.evaluate.gue_suite import DEFAULT_METRIC, METRIC_TITLES, PUBLISHED, family_of
from dnabert_rm.evaluate.results import ARMS, IN_GUE, OTHERS, STAND_INS, Row, published_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people who see red and green alike; markers differ as well.
LOOKS = dict(zip(ARMS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")), strict=True))
PUBLISHED_MARKERS = dict(zip(PUBLISHED, "vXPh*", strict=True))
TITLES = {
    IN_GUE: "GUE data sets",
    "families": "Means of complete tasks, published ones beside them",
    STAND_INS: "Stand-ins (dev → test): trained on dev for want of train; not GUE numbers",
    OTHERS: "Other data sets, default settings",
}
_ROW_INCHES, _ARM_INCHES, _PANEL_INCHES = 0.12, 0.17, 0.75


def draw_table(path: Path, rows: Sequence[Row], families: Sequence[Row]) -> None:
    """Write the picture; `ImportError` without matplotlib."""
    table_figure(rows, families).savefig(path, dpi=150, metadata={"Software": None})


def table_figure(rows: Sequence[Row], families: Sequence[Row]) -> Figure:
    """A panel for each kind of row that there is; `ImportError` without matplotlib."""
    from matplotlib.figure import Figure

    by_panel = {group: [row for row in rows if row.group == group] for group in (IN_GUE, STAND_INS, OTHERS)}
    panels = {name: {IN_GUE: by_panel[IN_GUE], "families": list(families), **by_panel}[name] for name in TITLES}
    panels = {name: own for name, own in panels.items() if own}
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    # In the families' panel the published means have a lane below our arms'.
    lanes = {name: len(arms) + (name == "families") for name in panels}
    heights = [
        _PANEL_INCHES + len({row.name for row in own}) * (_ROW_INCHES + _ARM_INCHES * lanes[name])
        for name, own in panels.items()
    ]
    figure = Figure(figsize=(8.5, 0.9 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, own) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, own, arms, lanes[name])
        axes.set_title(TITLES[name], fontsize=10, loc="left", fontweight="bold")
    grid[0].set_xlim(score_limits([*rows, *families], [value for *_, value in published_rows(families)]))
    grid[-1].set_xlabel("test score × 100: MCC, or macro F1 where the label says so", fontsize=9)
    handles = _legend(arms, bool(families), any(len(row.scores) > 1 for row in rows))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def score_limits(rows: Sequence[Row], others: Sequence[float]) -> tuple[float, float]:
    """The part of the axis to show: all scores and intervals, but of an interval at most 15 beyond the scores."""
    scores = [*others, *(value for row in rows for value in row.scores.values())]
    ends = [row.mean + sign * (row.half_width or 0) for row in rows for sign in (-1, 1)]
    low, high = max(min(ends + scores), min(scores) - 15) - 2, min(max(ends + scores), max(scores) + 15) + 2
    spare = max(0.0, 20 - (high - low)) / 2
    return low - spare, high + spare


def _draw_panel(axes: Any, rows: Sequence[Row], arms: Sequence[str], num_lanes: int) -> None:
    names = list(dict.fromkeys(row.name for row in rows))

    def height(name: str, lane: int) -> float:
        return names.index(name) + 0.8 * ((lane + 0.5) / num_lanes - 0.5)

    for row in rows:
        colour, marker = LOOKS[row.arm]
        y = height(row.name, arms.index(row.arm))
        if len(row.scores) > 1:
            axes.plot(list(row.scores.values()), [y] * len(row.scores), "|", color=colour, markersize=6, alpha=0.6)
        looks = {"color": colour, "markersize": 5, "capsize": 3, "linewidth": 1.3}
        axes.errorbar(row.mean, y, xerr=row.half_width, fmt=marker, **looks)
        text = f"{row.mean:.1f}" + ("" if row.half_width is None else f" ± {row.half_width:.1f}")
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=colour)
    if num_lanes > len(arms):
        for model, family, value in published_rows(rows):
            looks = {"color": "#444444", "markersize": 7, "markeredgewidth": 0}
            axes.plot(value, height(family, len(arms)), PUBLISHED_MARKERS[model], **looks)
    axes.set_yticks(range(len(names)), [_label(next(r for r in rows if r.name == name)) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#eeeeee", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    """The data set, its metric where that is not MCC, and its task where its name does not say it."""
    metric = "" if row.metric == DEFAULT_METRIC else f" ({METRIC_TITLES[row.metric]})"
    task = family_of(row.name) or ""
    return f"{row.name}{metric}" + (f"\n{task}" if task.lower() not in row.name.lower() else "")


def _legend(arms: Sequence[str], published: bool, several_seeds: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = [Line2D([], [], color=LOOKS[arm][0], marker=LOOKS[arm][1], label=arm, **plain) for arm in arms]
    if several_seeds:
        handles.append(Line2D([], [], color="#888888", marker="|", label="one seed", **plain))
        handles.append(Line2D([], [], color="#888888", linewidth=1.3, label="95 % interval of the mean"))
    if published:
        handles += [
            Line2D([], [], color="#444444", marker=marker, label=f"{model}, published", **plain)
            for model, marker in PUBLISHED_MARKERS.items()
        ]
    return handles
