"""Training curves of several runs in one figure: losses, masked accuracy, learning rate and masking phases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import COLOURS, LINES, MARKERS, NORMAL, SMALL, new_figure
from dnabert_rm.analysis.run_records import Points, Run, smooth
from dnabert_rm.utils.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS, ACCURACY, RATE = "loss", "masked_accuracy", "lr"
TITLES = {LOSS: "training loss (nats per masked token)", ACCURACY: "masked accuracy", RATE: "learning rate"}
COLUMNS = ("run", "curve", "step", "tokens", "value", "drawn")
MAX_PANELS_PER_ROW = 5


@dataclass(frozen=True)
class Curve:
    """Values of one metric of one run, as recorded and as plotted."""

    run: Run
    name: str
    points: Points
    """The recorded values."""
    drawn: NDArray[np.float64]
    """The plotted values: the recorded values, smoothed for some metrics."""


def make_curves(runs: Sequence[Run], width: int = 0) -> list[Curve]:
    """Return the non-empty curves of all runs.

    Training loss and masked accuracy are smoothed over `width` points. If `width` is 0, `default_width` is used.
    """
    curves = []
    for run in runs:
        for name in (LOSS, ACCURACY, RATE):
            points = run.curve(name)
            smoothed = name != RATE and len(points.values)
            drawn = smooth(points, width or default_width(run), run.phases) if smoothed else points.values
            curves.append(Curve(run, name, points, drawn))
        for name in run.held_out_names:
            points = run.curve("validation", name, "loss")
            curves.append(Curve(run, name, points, points.values))
    return [curve for curve in curves if len(curve.points.values)]


def default_width(run: Run) -> int:
    """Return the default number of points to smooth over: 2 % of the run's logged steps, rounded to an odd number."""
    return 2 * (len(run.rows) // 100) + 1


def curves_csv(curves: Sequence[Curve]) -> str:
    """Return the curves as CSV text. The columns `value` and `drawn` are the recorded and the plotted value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in curves:
        points = curve.points
        columns = (points.steps.tolist(), points.tokens.tolist(), points.values.tolist(), curve.drawn.tolist())
        for step, tokens, value, drawn in zip(*columns, strict=True):
            writer.writerow([curve.run.name, curve.name, step, "" if np.isnan(tokens) else int(tokens), value, drawn])
    return stream.getvalue()


def held_out_title(name: str) -> str:
    """Return the panel title of a held-out loss, e.g. "span 6" for "span_6"."""
    return name.replace("_", " ") if name.startswith("span_") else f"single tokens ({name})"


def curves_figure(runs: Sequence[Run], curves: Sequence[Curve], axis: str = "steps", width: int = 0) -> Figure:
    """Plot the training loss at the top, held-out losses below it, and accuracy and learning rate at the bottom.

    `axis` is the x axis, "steps" or "tokens". `width` is the value passed to `make_curves`, shown in the caption.
    Raise `ConfigError` if `axis` is "tokens" and a run did not record tokens, or if matplotlib is not installed.
    """
    for run in runs:
        if axis == "tokens" and np.isnan(run.curve(LOSS).tokens).any():
            raise ConfigError(f"{run.folder}: metrics.jsonl has no consumed_tokens; pass --x steps")
    spans = sorted({curve.name for curve in curves} - set(TITLES), key=lambda name: (len(name), name))
    num_rows = -(-len(spans) // MAX_PANELS_PER_ROW)
    per_row = -(-len(spans) // num_rows) if spans else 1
    figure = new_figure(11, 6.2 + 2.3 * num_rows)
    heights = [3.1, *[2.3] * num_rows, 2.3]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels: dict[str, Any] = {LOSS: parts[0].subplots()}
    for row, part in enumerate(parts[1:-1]):
        panels |= _held_out_panels(part, spans[row * per_row : (row + 1) * per_row], per_row)
    if spans:
        heading = f"held-out loss at fixed spans (nats per masked token, by {_axis_title(axis)})"
        parts[1].suptitle(heading, fontsize=NORMAL, fontweight="bold", x=0.01, ha="left")
    panels |= dict(zip((ACCURACY, RATE), parts[-1].subplots(1, 2), strict=True))
    for name, panel in panels.items():
        _draw_panel(panel, [curve for curve in curves if curve.name == name], list(runs), axis)
        title, weight = (TITLES[name], "bold") if name in TITLES else (held_out_title(name), "normal")
        panel.set_title(title, fontsize=NORMAL, loc="left", fontweight=weight)
        if name in TITLES:
            panel.set_xlabel(_axis_title(axis), fontsize=SMALL)
    _draw_phases(panels, runs, axis)
    columns = min(4, len(runs))
    parts[0].legend(handles=_legend(runs), loc="outside upper center", ncols=columns, fontsize=NORMAL, frameon=False)
    figure.supxlabel(caption(runs, width), fontsize=SMALL, x=0.01, ha="left", color="#333333")
    return figure


def _held_out_panels(part: Any, names: Sequence[str], per_row: int) -> dict[str, Any]:
    """Add one row of `per_row` panels, and hide the panels without a name. Return the panels keyed by name."""
    row = part.subplots(1, per_row, sharey=True, squeeze=False)[0]
    for panel in row[len(names) :]:
        panel.set_axis_off()
    return dict(zip(names, row, strict=False))


def caption(runs: Sequence[Run], width: int = 0) -> str:
    """Return a caption that explains smoothing and masking phases, and lists runs without held-out losses."""
    widths = sorted({width or default_width(run) for run in runs})
    text = "Training loss and accuracy: "
    if widths[-1] == 1:
        text += "every logged step, not smoothed."
    else:
        several = " or ".join(map(str, widths))
        text += f"mean of the {several} logged steps around each step, within one phase. Faint lines: single steps."
    if shaded := _first_with_phases(runs):
        text += "\nBands: phases" + (f" of {shaded.name}" if len(runs) > 1 else "") + " with their largest span."
        if [run for run in runs if run.phases and _borders(run) != _borders(shaded)]:
            text += " Triangles at the bottom: phase starts of the other runs."
    if without := [run.name for run in runs if not run.held_out_names]:
        text += f"\nWithout held-out losses: {', '.join(without)}."
    return text


def _draw_panel(panel: Any, curves: Sequence[Curve], runs: list[Run], axis: str) -> None:
    for curve in curves:
        number = runs.index(curve.run)
        x, values = curve.points.x(axis), curve.points.values
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        if curve.name not in TITLES or len(x) == 1:
            style |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.5}
        if not np.array_equal(values, curve.drawn):
            panel.plot(x, values, color=style["color"], linewidth=0.6, alpha=0.3)
        panel.plot(x, curve.drawn, linewidth=1.4, **style)
    panel.tick_params(labelsize=SMALL)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_locator(_few_ticks())
    panel.xaxis.set_major_formatter(_short_numbers())
    if curves and curves[0].name == RATE:
        panel.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        panel.yaxis.get_offset_text().set_fontsize(SMALL)
        panel.set_ylim(bottom=0)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)


def _short_numbers() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="", places=None)


def _axis_title(axis: str) -> str:
    return "optimizer step" if axis == "steps" else "tokens consumed"


def _first_with_phases(runs: Sequence[Run]) -> Run | None:
    return next((run for run in runs if run.phases), None)


def _borders(run: Run) -> list[tuple[int, int]]:
    return [(phase.first, phase.max_span) for phase in run.phases]


def _draw_phases(panels: dict[str, Any], runs: Sequence[Run], axis: str) -> None:
    """Shade every second masking phase of the first run that has phases. Label each phase with its largest span.

    For each run whose phases differ from the shaded phases, triangles mark the starts of its phases.
    """
    shaded = _first_with_phases(runs)
    if shaded is None:
        return
    loss = panels[LOSS]
    bottom, top = loss.get_ylim()
    loss.set_ylim(bottom, top + 0.06 * (top - bottom))  # space for the labels
    for phase in shaded.phases:
        start, end = shaded.position(phase.first, axis), shaded.position(phase.end, axis)
        for name, panel in panels.items():
            if name != RATE and phase.number % 2 == 0:
                panel.axvspan(start, end, color="#000000", alpha=0.06, linewidth=0)
        text = f"span ≤ {phase.max_span}" if phase.number == 1 else f"≤ {phase.max_span}"
        style: dict[str, Any] = {"va": "top", "ha": "center", "fontsize": SMALL, "color": "#444444", "clip_on": True}
        loss.text((start + end) / 2, 1.0, text, transform=loss.get_xaxis_transform(), **style)
    for number, run in enumerate(runs):
        if run.phases and _borders(run) != _borders(shaded):
            starts = [run.position(phase.first, axis) for phase in run.phases[1:]]
            style = {"color": COLOURS[number % len(COLOURS)], "markersize": 6, "clip_on": False}
            loss.plot(starts, [0.01] * len(starts), "^", transform=loss.get_xaxis_transform(), **style)


def _legend(runs: Sequence[Run]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINES[number % len(LINES)],
            label=run.name,
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5,
        )
        for number, run in enumerate(runs)
    ]
