"""Progress on standard error: a bar on a terminal, lines in a file, nothing for short work."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from dnabert_rm.utils import progress


class Stream(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.terminal


@pytest.fixture
def shown(monkeypatch):
    """Run the steps from `done` to 5 with a line every `seconds` seconds; return what is written."""

    def run(terminal: bool, seconds: float, **options) -> str:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", seconds)
        with progress.progress_bar("training", 5, "step", scaled=False, **options) as bar:
            for step in range(options.get("done", 0), 5):
                bar.set_postfix(loss=f"{step}.5", refresh=False)
                bar.update()
        return stream.getvalue()

    return run


def test_a_file_gets_one_line_per_update_with_the_metrics(shown):
    lines = shown(terminal=False, seconds=0).splitlines()
    assert [line.split(",")[0] for line in lines][-4:] == [f"training: {n} of 5 steps" for n in (2, 3, 4, 5)]
    assert lines[-1].endswith("left, loss=4.5") and "step/s" in lines[-1]
    assert "\r" not in "".join(lines)


def test_short_work_writes_nothing_to_a_file(shown):
    assert shown(terminal=False, seconds=progress.LINE_INTERVAL_SECONDS) == ""


def test_a_terminal_gets_one_line_that_is_overwritten(shown):
    text = shown(terminal=True, seconds=progress.LINE_INTERVAL_SECONDS, leave=True)
    assert "\rtraining:" in text and "5/5" in text and text.count("\n") == 1


def test_resumed_work_counts_from_where_it_stopped(shown):
    assert [line.split(",")[0] for line in shown(terminal=False, seconds=0, done=3).splitlines()][-1:] == [
        "training: 5 of 5 steps"
    ]


def test_quiet_writes_nothing(shown):
    assert shown(terminal=True, seconds=0, quiet=True) == ""


def test_unknown_total_is_a_question_mark(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0)
    with progress.progress_bar("sequences", None, "byte") as bar:
        bar.update(2_000_000)
    assert sys.stderr.getvalue().splitlines()[-1].startswith("sequences: 2.00M of ? bytes, ")


def test_a_total_of_zero_writes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    progress.progress_bar("shards", 0, "base").close()
    assert sys.stderr.getvalue() == ""


def test_a_file_gets_no_estimate_from_the_first_units(monkeypatch):
    stream = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0)
    before = threading.active_count()
    with progress.progress_bar("rows", 200, "row") as bar:
        for number in (1, 2, 5):
            bar.update(number)
        assert threading.active_count() == before
    first, second, third = stream.getvalue().splitlines()[-3:]
    assert first.startswith("rows: 1 of 200 rows, ") and first.endswith("elapsed")
    assert second.endswith("elapsed") and "left" in third
