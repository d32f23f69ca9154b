"""The report opens with the verdict on each run and its bits per base."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from validated_rows import rows_of, validation, write_run

from dnabert_rm.analysis.report import write_report
from dnabert_rm.analysis.run_records import read_run
from dnabert_rm.train.run_verdict import judge_run

pytest.importorskip("matplotlib")


def test_the_report_opens_with_verdicts_and_bits(tmp_path: Path) -> None:
    new = read_run(write_run(tmp_path / "new", rows_of([validation(1.95), validation(1.842)])))
    old = read_run(write_run(tmp_path / "old", rows_of([validation(None)])))
    write_report(tmp_path / "report.html", [new, old])
    page = (tmp_path / "report.html").read_text()
    first, second = page[page.index("<main>") :].split("</section>")[:2]
    assert re.findall("<h2>(.*?)</h2>", first + second) == ["Verdict", "Summary"]
    for run in (new, old):
        assert f"<strong>{run.name}:</strong> {judge_run(run.rows).text}" in first
    assert re.findall("<h3>(.*?)</h3>", first) == ["Held-out bits per base of new, last validation"]
    cells = [re.findall(">([^<>]+)</t[hd]>", line) for line in first.split("<tr>")[1:]]
    assert cells[0] == [
        "hidden bases", "model", "composition", "Markov order 2", "Markov order 5", "Markov order 8", "guessing"
    ]  # fmt: skip
    assert cells[3] == ["5", "1.842", "1.987", "1.980", "1.940", "1.930", "2.000"]
    write_report(tmp_path / "one.html", [new])
    assert f"<p>{judge_run(new.rows).text}</p>" in (tmp_path / "one.html").read_text()


def test_a_run_without_validation_says_how_to_get_one(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", rows_of([None, None])))
    write_report(tmp_path / "report.html", [run])
    assert "hold out data with <code>python -m data_prep build" in (tmp_path / "report.html").read_text()
