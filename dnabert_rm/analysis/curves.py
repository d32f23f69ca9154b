"""Several runs on one picture: training loss with its phases, held-out loss a span, masked accuracy, learning rate."""

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

AXES = ("steps", "tokens")
LOSS, ACCURACY, RATE = "loss", "masked_accuracy", "lr"
TITLES = {LOSS: "training loss (nats a masked token)", ACCURACY: "masked accuracy", RATE: "learning rate"}
COLUMNS = ("run", "curve", "step", "tokens", "value", "drawn")
MAX_PANELS_A_ROW = 5


@dataclass(frozen=True)
class Curve:
    """One line of the picture: what was recorded, and what is drawn in its place (smoothed or the same)."""

    run: Run
    name: str
    points: Points
    drawn: NDArray[np.float64]


def make_curves(runs: Sequence[Run], width: int = 0) -> list[Curve]:
    """All curves of the runs that have points; `width` 0 chooses how many are smoothed over (`default_width`)."""
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
    """Points that the mean is taken over: a fiftieth of the run's, an odd number."""
    return 2 * (len(run.rows) // 100) + 1


def curves_csv(curves: Sequence[Curve]) -> str:
    """What is drawn as a table: run, curve, step, tokens, the recorded value and the drawn one."""
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
    """ "span_6" → "span 6"."""
    return name.replace("_", " ") if name.startswith("span_") else f"single tokens ({name})"


def curves_figure(runs: Sequence[Run], curves: Sequence[Curve], axis: str = "steps", width: int = 0) -> Figure:
    """The picture; `axis` "steps" or "tokens"; `width` as given to `make_curves`, for the caption.

    `ConfigError` where a run has not recorded its tokens, or matplotlib is missing.
    """
    for run in runs:
        if axis == "tokens" and np.isnan(run.curve(LOSS).tokens).any():
            raise ConfigError(f"{run.folder}: its metrics have no consumed_tokens; draw it with --x steps")
    spans = sorted({c.name for c in curves} - set(TITLES), key=lambda name: (len(name), name))
    a_row = -(-len(spans) // -(-len(spans) // MAX_PANELS_A_ROW)) if spans else 1
    lines = [spans[first : first + a_row] for first in range(0, len(spans), a_row)]
    figure = new_figure(11, 6.2 + 2.3 * len(lines))
    parts = figure.subfigures(2 + len(lines), 1, height_ratios=[3.1, *[2.3] * len(lines), 2.3], squeeze=False)[:, 0]
    panels = {LOSS: parts[0].subplots()}
    for part, names in zip(parts[1:-1], lines, strict=True):
        row = part.subplots(1, a_row, sharey=True, squeeze=False)[0]
        panels |= dict(zip(names, row, strict=False))
        for panel in row[len(names) :]:
            panel.set_axis_off()
        if names is lines[0]:
            heading = f"held-out loss at fixed spans (nats a masked token, by {_axis_title(axis)})"
            part.suptitle(heading, fontsize=NORMAL, fontweight="bold", x=0.01, ha="left")
    panels |= dict(zip((ACCURACY, RATE), parts[-1].subplots(1, 2), strict=True))
    for name, panel in panels.items():
        _draw_panel(panel, [curve for curve in curves if curve.name == name], list(runs), axis)
        panel.set_title(TITLES.get(name) or held_out_title(name), fontsize=NORMAL, loc="left",
                        fontweight="bold" if name in TITLES else "normal")  # fmt: skip
    for name in (LOSS, ACCURACY, RATE):
        panels[name].set_xlabel(_axis_title(axis), fontsize=SMALL)
    _draw_phases(panels, runs, axis)
    parts[0].legend(handles=_legend(runs), loc="outside upper center", ncols=min(4, len(runs)), fontsize=NORMAL,
                    frameon=False)  # fmt: skip
    figure.supxlabel(caption(runs, width), fontsize=SMALL, x=0.01, ha="left", color="#333333")
    return figure


def caption(runs: Sequence[Run], width: int = 0) -> str:
    """How to read the picture: smoothing, phases, and what a run lacks."""
    widths = sorted({width or default_width(run) for run in runs})
    text = "Training loss and accuracy: "
    if widths[-1] == 1:
        text += "every logged step, not smoothed."
    else:
        several = " or ".join(map(str, widths))
        text += f"mean of the {several} logged steps around each, never over two phases; faint: the steps themselves."
    if shaded := next((run for run in runs if run.phases), None):
        text += "\nBands: phases" + (f" of {shaded.name}" if len(runs) > 1 else "") + " with their largest span."
        if [run for run in runs if run.phases and _borders(run) != _borders(shaded)]:
            text += " Triangles at the bottom: phases of the other runs."
    if without := [run.name for run in runs if not run.held_out_names]:
        text += f"\nWithout held-out losses: {', '.join(without)}."
    return text


def _draw_panel(panel: Any, curves: Sequence[Curve], runs: list[Run], axis: str) -> None:
    for curve in curves:
        number = runs.index(curve.run)
        x, values = curve.points.x(axis), curve.points.values
        looks: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        if curve.name not in TITLES or len(x) == 1:
            looks |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.5}
        if not np.array_equal(values, curve.drawn):
            panel.plot(x, values, color=looks["color"], linewidth=0.6, alpha=0.3)
        panel.plot(x, curve.drawn, linewidth=1.4, **looks)
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


def _borders(run: Run) -> list[tuple[int, int]]:
    return [(phase.first, phase.max_span) for phase in run.phases]


def _draw_phases(panels: dict[str, Any], runs: Sequence[Run], axis: str) -> None:
    """Bands of the first run that has phases, its spans at the top of the loss; triangles for others' beginnings."""
    shaded = next((run for run in runs if run.phases), None)
    if shaded is None:
        return
    bottom, top = panels[LOSS].get_ylim()
    panels[LOSS].set_ylim(bottom, top + 0.06 * (top - bottom))  # room for the spans
    for phase in shaded.phases:
        start, end = shaded.position(phase.first, axis), shaded.position(phase.end, axis)
        for name, panel in panels.items():
            if name != RATE and phase.number % 2 == 0:
                panel.axvspan(start, end, color="#000000", alpha=0.06, linewidth=0)
        text = f"span ≤ {phase.max_span}" if phase.number == 1 else f"≤ {phase.max_span}"
        panels[LOSS].text((start + end) / 2, 1.0, text, transform=panels[LOSS].get_xaxis_transform(), va="top",
                          ha="center", fontsize=SMALL, color="#444444", clip_on=True)  # fmt: skip
    for number, run in enumerate(runs):
        if run.phases and _borders(run) != _borders(shaded):
            starts = [run.position(phase.first, axis) for phase in run.phases[1:]]
            panels[LOSS].plot(starts, [0.01] * len(starts), "^", transform=panels[LOSS].get_xaxis_transform(),
                              color=COLOURS[number % len(COLOURS)], markersize=6, clip_on=False)  # fmt: skip


def _legend(runs: Sequence[Run]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=COLOURS[n % len(COLOURS)], linestyle=LINES[n % len(LINES)], label=run.name,
               marker=MARKERS[n % len(MARKERS)], markersize=3.5)
        for n, run in enumerate(runs)
    ]  # fmt: skip
