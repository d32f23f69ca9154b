"""`dnabert-rm check-run` prints the verdict, the last validations and a table; a folder that is no run is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from validated_rows import rows_of, validation, write_run

from dnabert_rm.cli.main import main


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert not main(["check-run", *map(str, words)])
    return capsys.readouterr().out.splitlines()


def test_verdict_validations_and_table(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", rows_of([validation(2 - 0.02 * number) for number in range(1, 8)]))
    lines = printed(capsys, run)
    assert lines[0].startswith("1.860 bits per base at 5 hidden bases after 700 steps, better than guessing (2)")
    assert [line.split(":")[0] for line in lines[2:7]] == [f"step {step}" for step in (300, 400, 500, 600, 700)]
    assert lines[6] == "step 700: 1.860 bits per base at 5 hidden bases; Markov order 8: 1.930; guessing: 2"
    assert lines[8].split("  ")[:2] == ["hidden bases", "model"]
    assert lines[11].split() == ["5", "1.860", "1.987", "1.980", "1.940", "1.930", "2.000"]
    assert len({len(line) for line in lines[8:]}) == 1


def test_json_is_one_object(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", rows_of([validation(1.9)] * 4))
    (line,) = printed(capsys, run, "--json")
    found = json.loads(line)
    assert (found["steps"], found["bits"], found["trend"], found["on_plateau"]) == (400, 1.9, "flat", False)
    assert found["lines"] == {"guessing": 2, "composition": 1.987, "Markov order 8": 1.93}
    assert found["validation"] == validation(1.9) and "The curve no longer falls" in found["text"]


def test_runs_without_bits_and_without_validation(tmp_path: Path, capsys) -> None:
    old = write_run(tmp_path / "old", rows_of([validation(None, loss=6.4, base_accuracy=None)]))
    lines = printed(capsys, old)
    assert "the held-out loss is 6.400" in lines[0] and lines[-3].split() == ["span", "6", "6.400", "0.100", "–"]
    young = write_run(tmp_path / "young", rows_of([None], every=50))
    assert printed(capsys, young) == ["No validation yet: the first one is after 100 steps."]
    assert json.loads(printed(capsys, young, "--json")[0])["validation"] is None
    for settings, first in (("steps = 60", 60), ("steps = 600\nstop_after = 70", 70), ("steps = 600", 100)):
        text = (young / "config.toml").read_text().partition("[train]")[0] + f"[train]\n{settings}\n"
        (young / "config.toml").write_text(text)
        assert printed(capsys, young) == [f"No validation yet: the first one is after {first} steps."]


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys) -> None:
    for folder, reason in ((tmp_path, "metrics.jsonl: no such file"), (tmp_path / "x", "no such folder")):
        assert main(["check-run", str(folder)]) == 2
        found = capsys.readouterr()
        assert reason in found.err and "pass the --output of a pretraining run" in found.err
        assert len(found.err.splitlines()) == 1 and not found.out


def test_the_command_does_not_import_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of([validation()]))
    code = "import sys; from dnabert_rm.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "check-run", str(run)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
