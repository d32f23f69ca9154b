"""The last lines that a run prints: the verdict from its validations, then the next command."""

from __future__ import annotations

from pathlib import Path

from validated_rows import rows_of, validation, write_run

from dnabert_rm.config import resolve
from dnabert_rm.train.run_summary import end_summary


def test_a_run_ends_with_its_verdict(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of([validation(1.9), validation(1.8)]))
    config = resolve({"data": {"path": ["d"]}, "train": {"output": str(run), "steps": 200}})
    first, last = end_summary(config, 200, has_trained=True).splitlines()
    assert first.startswith("1.800 bits per base at 5 hidden bases after 200 steps, better than guessing")
    loss = "loss 7.000 (mean of the last 2 logged steps)"
    assert last == f"done: step 200 of 200, {loss}; next: dnabert-rm export {run} --output HFDIR"
    assert end_summary(config, 199, has_trained=True).startswith("1.900 bits per base"), "later rows are another run's"


def test_without_a_validation_there_is_no_verdict(tmp_path: Path) -> None:
    config = resolve({"data": {"path": ["d"]}, "train": {"output": str(tmp_path), "steps": 200}})
    assert end_summary(config, 200, has_trained=False).startswith("done: step 200 of 200, no step was left to run")


def test_the_final_loss_is_that_of_the_last_phase(tmp_path: Path) -> None:
    rows = rows_of([None] * 5)
    for number, row in enumerate(rows):
        row |= {"loss": float(number), "phase": 1 + number // 3}
    config = resolve(
        {"data": {"path": ["d"]}, "train": {"output": str(write_run(tmp_path / "run", rows)), "steps": 500}}
    )
    assert "loss 3.500 (mean of the last 2 logged steps)" in end_summary(config, 500, has_trained=True)
    assert "loss 1.000 (mean of the last 3 logged steps)" in end_summary(config, 300, has_trained=True)
