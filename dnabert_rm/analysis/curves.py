"""Training curves of several runs in one figure: bits per base, losses, accuracy, learning rate, masking phases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.baseline_lines import (
    Line,
    bits_reference_lines,
    draw_lines,
    label_lines,
    loss_reference_lines,
)
from dnabert_rm.analysis.figures import COLOURS, LINES, MARKERS, NORMAL, SMALL, new_figure
from dnabert_rm.analysis.run_records import Points, Run, smooth
from dnabert_rm.train.validation_record import BITS, VALIDATION, bases_text, curve_text
from dnabert_rm.utils.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS, ACCURACY, RATE = "loss", "masked_accuracy", "lr"
TITLES = {LOSS: "training loss (nats per masked token)", ACCURACY: "masked accuracy", RATE: "learning rate"}
COLUMNS = ("run", "curve", "step", "tokens", "value", "drawn")
BITS_PREFIX = "bits_"
"""Prefix of the curves of bits per base; the number of hidden bases follows."""
MAX_PANELS_PER_ROW, MAX_BITS_PANELS = 5, 4
LOSS_HEIGHT, HEIGHT = 3.1, 2.3
"""Heights in inches of the row of the training loss, and of each other row."""


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
            points = run.curve(VALIDATION, name, "loss")
            curves.append(Curve(run, name, points, points.values))
        for hidden in run.hidden_bases:
            points = run.curve(VALIDATION, BITS, str(hidden))
            curves.append(Curve(run, f"{BITS_PREFIX}{hidden}", points, points.values))
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


def panel_title(name: str) -> str:
    """Return the title of a panel, e.g. "span 6" for "span_6", and "5 hidden bases" for "bits_5"."""
    if name in TITLES:
        return TITLES[name]
    return bases_text(int(name.removeprefix(BITS_PREFIX))) if name.startswith(BITS_PREFIX) else curve_text(name)


def curves_figure(runs: Sequence[Run], curves: Sequence[Curve], axis: str = "steps", width: int = 0) -> Figure:
    """Plot bits per base (top), training loss, held-out losses, and accuracy and learning rate (bottom).

    `axis` is the x axis, "steps" or "tokens". `width` is the value passed to `make_curves`, shown in the caption.
    Raise `ConfigError` if `axis` is "tokens" and a run did not record tokens, or if matplotlib is not installed.
    """
    for run in runs:
        if axis == "tokens" and np.isnan(run.curve(LOSS).tokens).any():
            raise ConfigError(f"{run.folder}: metrics.jsonl has no consumed_tokens; pass --x steps")
    rows = _panel_rows(curves)
    heights = [LOSS_HEIGHT if row == [LOSS] else HEIGHT for row in rows]
    columns = min(4, len(runs))
    legend_height = 0.15 + 0.2 * -(-len(runs) // columns)
    figure = new_figure(11, 0.5 + legend_height + sum(heights))
    top, *parts = figure.subfigures(1 + len(rows), 1, height_ratios=[legend_height, *heights], squeeze=False)[:, 0]
    top.legend(handles=_legend(runs), loc="center", ncols=columns, fontsize=NORMAL, frameon=False)
    panels: dict[str, Any] = {}
    for row, part in zip(rows, parts, strict=True):
        if heading := _row_heading(row, rows, axis):
            part.suptitle(heading, fontsize=NORMAL, fontweight="bold", x=0.01, ha="left")
        panels |= _row_panels(part, row, axis)
    for name, panel in panels.items():
        _draw_panel(panel, [curve for curve in curves if curve.name == name], list(runs), axis)
    lines = {name: _lines_of(name, runs) for name in panels}
    for name, panel in panels.items():
        draw_lines(panel, lines[name])
    _draw_phases(panels, runs, axis)
    for row in rows:  # the token losses of a row have the same lines, so they are labelled once
        for name in row if row[0].startswith(BITS_PREFIX) else row[-1:]:
            label_lines(panels[name], lines[name], (LOSS_HEIGHT if name == LOSS else HEIGHT) - 0.8)
    figure.supxlabel(caption(runs, width), fontsize=SMALL, x=0.01, ha="left", color="#333333")
    return figure


def _panel_rows(curves: Sequence[Curve]) -> list[list[str]]:
    """Return the names of the panels in each row of the figure."""
    names = sorted({curve.name for curve in curves} - set(TITLES), key=lambda name: (len(name), name))
    bits = [name for name in names if name.startswith(BITS_PREFIX)]
    losses = [name for name in names if name not in bits]
    return [*_split_rows(bits, MAX_BITS_PANELS), [LOSS], *_split_rows(losses, MAX_PANELS_PER_ROW), [ACCURACY, RATE]]


def _split_rows(names: list[str], most: int) -> list[list[str]]:
    """Split names into as few rows as possible, with at most `most` names each. Only the last row may be shorter."""
    if not names:
        return []
    per_row = -(-len(names) // -(-len(names) // most))
    return [names[first : first + per_row] for first in range(0, len(names), per_row)]


def _row_heading(row: list[str], rows: Sequence[list[str]], axis: str) -> str | None:
    """Return the heading above a row of held-out panels, or None if the row continues the one above."""
    above = rows[rows.index(row) - 1] if rows.index(row) else [LOSS]
    if row[0] in TITLES:
        return None
    if row[0].startswith(BITS_PREFIX):
        is_first = not above[0].startswith(BITS_PREFIX)
        return f"held-out bits per base (by {_axis_title(axis)})" if is_first else None
    is_first = above[0] in TITLES
    return f"held-out loss at fixed spans (nats per masked token, by {_axis_title(axis)})" if is_first else None


def _row_panels(part: Any, row: Sequence[str], axis: str) -> dict[str, Any]:
    """Add one row of panels with titles, and return them keyed by name. Held-out panels share their vertical axis."""
    is_held_out = row[0] not in TITLES
    panels = dict(zip(row, part.subplots(1, len(row), sharey=is_held_out, squeeze=False)[0], strict=True))
    for name, panel in panels.items():
        panel.set_title(panel_title(name), fontsize=NORMAL, loc="left", fontweight="normal" if is_held_out else "bold")
        if not is_held_out:
            panel.set_xlabel(_axis_title(axis), fontsize=SMALL)
    return panels


def _lines_of(name: str, runs: Sequence[Run]) -> list[Line]:
    """Return the reference lines of a panel."""
    if name.startswith(BITS_PREFIX):
        return bits_reference_lines(runs, int(name.removeprefix(BITS_PREFIX)))
    return [] if name in (ACCURACY, RATE) else loss_reference_lines(runs, is_training_loss=name == LOSS)


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
