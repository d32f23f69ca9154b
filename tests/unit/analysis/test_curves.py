"""Figures of curves: panels of bits per base, horizontal lines, and labels that do not overlap."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from validated_rows import rows_of, validation, write_run

from dnabert_rm.analysis.baseline_lines import loss_reference_lines, spread
from dnabert_rm.analysis.curves import curves_csv, curves_figure, make_curves
from dnabert_rm.analysis.run_records import Run, read_run

pytest.importorskip("matplotlib")
BITS = ["1 hidden base", "3 hidden bases", "5 hidden bases", "9 hidden bases"]
SPANS = ["span 6", "span 8", "span 10"]
LOSS = "training loss (nats per masked token)"


def make_run(folder: Path, markov: float = 1.93, bits: tuple[float | None, ...] = (1.95, 1.84), **files: Any) -> Run:
    rows = rows_of([validation(value, markov=markov) for value in bits])
    return read_run(write_run(folder, rows, **files))


def figure_of(*runs: Run) -> tuple[Any, dict[str, Any]]:
    """Draw the curves of runs. Return the figure, and its panels by title."""
    figure = curves_figure(runs, make_curves(runs))
    return figure, {axes.get_title(loc="left"): axes for part in figure.subfigs for axes in part.axes}


def lines_of(panel: Any) -> dict[str, float]:
    """Return the labelled horizontal lines of a panel."""
    heights = {line.get_ydata()[0] for line in panel.lines if len(set(line.get_ydata())) == 1}
    bottom, top = panel.get_ylim()
    labels = {text.get_text(): bottom + text.xy[1] * (top - bottom) for text in panel.texts if hasattr(text, "xy")}
    for value in labels.values():
        assert min(abs(height - value) for height in heights) < 1e-9, "a label points at its line"
    return labels


def test_bits_have_the_first_row_with_one_axis_and_labelled_lines(tmp_path: Path) -> None:
    _, panels = figure_of(make_run(tmp_path / "run"))
    assert list(panels) == [*BITS, LOSS, *SPANS, "masked accuracy", "learning rate"]
    assert panels["5 hidden bases"].lines[0].get_xydata().tolist() == [[99, 1.95], [199, 1.84]]
    assert len({panels[title].get_ylim() for title in BITS}) == 1
    assert lines_of(panels["5 hidden bases"]) == pytest.approx(
        {"guessing": 2, "composition": 1.987, "Markov order 8": 1.93}
    )
    assert lines_of(panels["9 hidden bases"])["Markov order 5"] == pytest.approx(1.94)
    expected = {"guessing": 6 * math.log(4), "k-mer frequencies": 7.353}
    for title in (LOSS, SPANS[-1]):
        assert lines_of(panels[title]) == pytest.approx(expected)


def test_no_texts_overlap_and_none_is_cut_off(tmp_path: Path) -> None:
    """Runs on three data sets have many lines, some of them nearly at the same height."""
    from matplotlib.text import Text

    runs = [make_run(tmp_path / str(markov), markov, (1.99, 1.985)) for markov in (1.93, 1.9862, 1.99)]
    figure, panels = figure_of(*runs)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for panel in panels.values() for text in panel.texts]
    boxes += [(panel.get_title(loc="left"), panel.get_tightbbox()) for panel in panels.values() if not panel.texts]
    headings = [part._suptitle for part in figure.subfigs if part._suptitle]
    boxes += [(heading.get_text(), heading.get_window_extent()) for heading in headings]
    boxes += [("legend", part.legends[0].get_window_extent()) for part in figure.subfigs if part.legends]
    assert len(headings) == 2 and len(boxes) > 20
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (first, second)
    for name, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, name


def test_a_line_that_differs_between_runs_has_the_colour_of_its_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", markov=1.95), make_run(tmp_path / "c")]
    _, panels = figure_of(*runs)
    labels = [(text.get_text(), text.get_color()) for text in panels["5 hidden bases"].texts]
    assert sorted(labels) == [
        ("Markov order 8", "#0072B2"),
        ("Markov order 8", "#D55E00"),
        ("composition", "#666666"),
        ("guessing", "#666666"),
    ]


def test_runs_without_bits_have_no_empty_panels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", bits=(None, None))
    _, panels = figure_of(run)
    assert list(panels) == [LOSS, *SPANS, "masked accuracy", "learning rate"]
    assert list(lines_of(panels[LOSS])) == ["guessing"]
    both = [make_run(tmp_path / "new"), run]
    _, panels = figure_of(*both)
    assert list(panels)[:5] == [*BITS, LOSS]


def test_the_table_has_the_bits(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = list(csv.DictReader(io.StringIO(curves_csv(make_curves([run])))))
    assert list(rows[0]) == ["run", "curve", "step", "tokens", "value", "drawn"]
    assert {row["curve"] for row in rows if row["curve"].startswith("bits")} == {"bits_1", "bits_3", "bits_5", "bits_9"}
    own = [(row["step"], row["tokens"], float(row["value"])) for row in rows if row["curve"] == "bits_5"]
    assert own == [("99", "10000", 1.95), ("199", "20000", 1.84)]
    assert not {row["curve"] for row in rows} & {"bits_per_base", "markov", "composition", "kmer_frequencies"}


@pytest.mark.parametrize(
    ("k", "settings", "training", "held_out"),
    [
        (6, {}, ["guessing", "k-mer frequencies"], ["guessing", "k-mer frequencies"]),
        (6, {"loss": "base"}, ["guessing"], ["guessing", "k-mer frequencies"]),
        (6, {"init_from": "models/first"}, [], []),
        (6, {"overlap": False}, [], []),
        (None, {}, [], []),
    ],
)
def test_token_losses_have_lines_only_where_these_apply(
    tmp_path: Path, k: int | None, settings: dict[str, Any], training: list[str], held_out: list[str]
) -> None:
    run = make_run(tmp_path / "run", k=k)
    run.config["data"] |= {name: value for name, value in settings.items() if name == "overlap"}
    run.config["model"] |= {name: value for name, value in settings.items() if name != "overlap"}
    assert [line.name for line in loss_reference_lines([run], is_training_loss=True)] == training
    assert [line.name for line in loss_reference_lines([run], is_training_loss=False)] == held_out


def test_labels_are_moved_apart_and_no_further_than_needed() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9] and spread([], 0.1) == []
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    rng = np.random.default_rng(0)
    for _ in range(50):
        heights = sorted(rng.uniform(0, 1, 6).tolist())
        placed = spread(heights, 0.1)
        assert min(np.diff(placed)) >= 0.1 - 1e-9
        assert np.mean(placed) == pytest.approx(np.mean(heights))
