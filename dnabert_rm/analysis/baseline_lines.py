"""Horizontal lines to compare curves with, such as guessing and a Markov chain, labelled beside their panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dnabert_rm.analysis.figures import COLOURS
from dnabert_rm.analysis.run_records import Run
from dnabert_rm.train.validation_record import GUESSING, KMER_FREQUENCIES, bits_lines, model_bits, validation_of

GREY = "#666666"
FONT_SIZE = 7
"""Font size of the labels in points."""


class Line(NamedTuple):
    """A horizontal line of a panel, at the height `value`."""

    name: str
    value: float
    colour: str


def bits_reference_lines(runs: Sequence[Run], hidden: int) -> list[Line]:
    """Return the lines of a panel with bits per base: guessing, composition and each run's best chain."""
    found = []
    for run in runs:
        last = _last_validation(run)
        found.append(bits_lines(last, hidden) if hidden in model_bits(last) else {})
    return _merged(found)


def loss_reference_lines(runs: Sequence[Run], *, is_training_loss: bool) -> list[Line]:
    """Return the lines of a panel with token losses: guessing, and the frequencies of single k-mers.

    A run has lines only if its k-mers overlap and it did not begin with pretrained weights. The k-mer frequencies are
    for the loss of the validation, so a training loss of another kind is not compared with them.
    """
    found = []
    for run in runs:
        lines: dict[str, float] = {}
        if run.k and run.setting("data", "overlap") and not run.setting("model", "init_from"):
            lines[GUESSING] = run.k * math.log(4)
            frequencies = _last_validation(run).get(KMER_FREQUENCIES)
            if frequencies is not None and (not is_training_loss or _trains_like_validation(run)):
                lines["k-mer frequencies"] = frequencies
        found.append(lines)
    return _merged(found)


def _trains_like_validation(run: Run) -> bool:
    """Return whether the training loss is over tokens, with 80/10/10 replacement and without weights."""
    return (
        run.setting("model", "loss") in (None, "token")
        and run.setting("masking", "replacement") != "mask"
        and run.setting("data", "repeat_weight") in (None, 1.0)
    )


def _last_validation(run: Run) -> dict[str, Any]:
    return dict(next((found for row in reversed(run.rows) if (found := validation_of(row))), {}))


def _merged(lines_of_runs: Sequence[dict[str, float]]) -> list[Line]:
    """Return each line once. A line that differs between runs has the colour of its run, all others are grey."""
    values: dict[str, set[float]] = {}
    for lines in lines_of_runs:
        for name, value in lines.items():
            values.setdefault(name, set()).add(round(value, 6))
    merged: dict[tuple[str, float], Line] = {}
    for number, lines in enumerate(lines_of_runs):
        for name, value in lines.items():
            colour = GREY if len(values[name]) == 1 else COLOURS[number % len(COLOURS)]
            merged.setdefault((name, round(value, 6)), Line(name, value, colour))
    return list(merged.values())


def draw_lines(panel: Any, lines: Sequence[Line]) -> None:
    """Draw horizontal lines, and extend the vertical axis where a line is outside."""
    for line in lines:
        panel.axhline(line.value, color=line.colour, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.5)


def label_lines(panel: Any, lines: Sequence[Line], height_inches: float) -> None:
    """Write the names of the lines to the right of a panel, without overlap.

    Call this after the panel's curves are drawn. `height_inches` is the approximate height of the panel's axes.
    """
    bottom, top = panel.get_ylim()
    ordered = sorted(lines, key=lambda line: line.value)
    heights = [(line.value - bottom) / (top - bottom) for line in ordered]
    gap = 1.25 * FONT_SIZE / 72 / height_inches
    for line, height, label_height in zip(ordered, heights, spread(heights, gap), strict=True):
        panel.annotate(
            line.name,
            xy=(1.0, height),
            xytext=(9, label_height),
            xycoords="axes fraction",
            textcoords=("offset points", "axes fraction"),
            fontsize=FONT_SIZE,
            color=line.colour,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights so that neighbours are at least `gap` apart, and each group keeps its mean height."""
    groups: list[list[float]] = []  # Each group is a list of heights that are placed `gap` apart.
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _first(groups[-1], gap) < _first(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_first(group, gap) + gap * number for group in groups for number in range(len(group))]


def _first(group: Sequence[float], gap: float) -> float:
    """Return the lowest placed height of a group."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2
