"""Progress on standard error: a bar on a terminal, lines in a file, nothing for short work."""

from __future__ import annotations

import io
import sys

import pytest

from dnabert_rm.utils import progress


class Stream(io.StringIO):
    """Standard error that is a terminal or is none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.terminal


@pytest.fixture
def shown(monkeypatch):
    """What `steps` of 5 from `done` on write, with a line every `seconds` seconds."""

    def run(terminal: bool, seconds: float, **options) -> str:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "SECONDS_A_LINE", seconds)
        with progress.progress_bar("training", 5, "step", scaled=False, **options) as bar:
            for step in range(options.get("done", 0), 5):
                bar.set_postfix(loss=f"{step}.5", refresh=False)
                bar.update()
        return stream.getvalue()

    return run


def test_a_file_gets_a_line_a_state_with_the_numbers_in_it(shown):
    lines = shown(terminal=False, seconds=0).splitlines()
    assert [line.split(",")[0] for line in lines][-4:] == [f"training: {n} of 5 steps" for n in (2, 3, 4, 5)]
    assert lines[-1].endswith("left, loss=4.5") and "step/s" in lines[-1]
    assert "\r" not in "".join(lines)


def test_a_file_gets_nothing_of_short_work(shown):
    assert shown(terminal=False, seconds=progress.SECONDS_A_LINE) == ""


def test_a_terminal_has_one_line_that_is_written_anew(shown):
    text = shown(terminal=True, seconds=progress.SECONDS_A_LINE, leave=True)
    assert "\rtraining:" in text and "5/5" in text and text.count("\n") == 1


def test_work_gone_on_with_counts_from_where_it_was(shown):
    assert [line.split(",")[0] for line in shown(terminal=False, seconds=0, done=3).splitlines()][-1:] == [
        "training: 5 of 5 steps"
    ]


def test_quiet_is_quiet(shown):
    assert shown(terminal=True, seconds=0, quiet=True) == ""


def test_a_pipe_has_no_total(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0)
    with progress.progress_bar("sequences", None, "byte") as bar:
        bar.update(2_000_000)
    assert sys.stderr.getvalue().splitlines()[-1].startswith("sequences: 2.00M of ? bytes, ")


def test_nothing_to_do_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    progress.progress_bar("shards", 0, "base").close()
    assert sys.stderr.getvalue() == ""
