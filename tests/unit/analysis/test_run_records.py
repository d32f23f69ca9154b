"""Reading run folders: rows, phases, positions, smoothing, names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from validated_rows import rows_of, validation, write_run

from dnabert_rm.analysis.run_records import Run, read_run, read_runs, short_names, smooth
from dnabert_rm.masking.schedule import make_schedule
from dnabert_rm.utils.errors import ConfigError, DataError


def run_of(num_steps: int, total: int, every: int = 1, **masking) -> Run:
    """Make a run of k = 4 that logged every `every`-th step, with 100 tokens per step."""
    schedule = make_schedule("randommask", k=4, total_steps=total, **masking)
    rows = [
        {
            "step": step,
            "loss": 5 - 0.01 * step,
            "phase": int(schedule.phase_of(step)),
            "max_span": schedule.max_span(step),
            "consumed_tokens": 100 * (step + 1),
        }
        for step in range(0, num_steps, every)
    ]
    config = {"masking": {"policy": "randommask", **masking}, "train": {"steps": total}}
    return Run(Path("x"), "x", rows, config)


@pytest.mark.parametrize(("num_steps", "total"), [(480, 480), (77, 480), (12, 12), (1, 480), (16, 16)])
def test_phases_are_the_schedules_up_to_the_last_logged_step(num_steps: int, total: int) -> None:
    schedule, run = make_schedule("randommask", k=4, total_steps=total), run_of(num_steps, total)
    found = {step: (phase.number, phase.max_span) for phase in run.phases for step in range(phase.first, phase.end)}
    assert found == {step: (int(schedule.phase_of(step)), schedule.max_span(step)) for step in range(num_steps)}


def test_configured_phases_and_runs_without_phases() -> None:
    run = run_of(100, 100, phase_ends=[0.2, 0.5, 1.0])
    assert [(phase.first, phase.end, phase.max_span) for phase in run.phases] == [(0, 20, 4), (20, 50, 6), (50, 100, 8)]
    run.config["masking"]["policy"] = "fixed"
    assert Run(run.folder, "x", run.rows, run.config).phases == [] == Run(run.folder, "x", run.rows).phases


def test_a_step_starts_at_the_tokens_consumed_before_it() -> None:
    run = run_of(31, 31, every=10)
    assert [run.position(step, "tokens") for step in (0, 1, 10, 15, 31)] == [0, 100, 1000, 1500, 3100]
    assert run.position(15, "steps") == 15


def test_smoothing_is_a_mean_within_the_phase() -> None:
    run = run_of(90, 90, phase_ends=[0.4, 1.0])
    rng = np.random.default_rng(1)
    for row in run.rows:
        row["loss"] = float(rng.normal() + 10 * (row["phase"] == 2))
    points = run.curve("loss")
    smoothed = smooth(points, 7, run.phases)
    for index, step in enumerate(points.steps):
        same_phase = [row for row in run.rows if row["phase"] == run.rows[index]["phase"]]
        near = [row["loss"] for row in same_phase if abs(row["step"] - step) <= 3]
        assert smoothed[index] == pytest.approx(np.mean(near))
    assert smoothed[36] - smoothed[35] > 8, "the jump is kept"
    assert (smooth(points, 1, run.phases) == points.values).all()


def test_an_incomplete_last_line_is_skipped_and_a_damaged_line_is_reported(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "lo')
    assert [row["step"] for row in read_run(tmp_path).rows] == [0, 1, 2]
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], "nonsense", lines[2]]))
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON object with the metrics of a step"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no step is logged yet"):
        read_run(tmp_path)


def test_run_names_are_distinct(tmp_path: Path) -> None:
    assert short_names(["a/x", "b/y"]) == ["x", "y"]
    assert short_names(["a/x", "b/x", "b/y"]) == ["a/x", "b/x", "b/y"]
    with pytest.raises(ConfigError, match="1 names for 2 runs"):
        read_runs(["a", "b"], ["one"])
    with pytest.raises(ConfigError, match="two runs have the same name"):
        read_runs(["a", "b"], ["one", "one"])


def test_only_losses_are_held_out_names_and_bits_are_listed_apart(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "new", rows_of([None, validation(1.9)])))
    assert run.held_out_names == ["span_6", "span_8", "span_10"] and run.hidden_bases == [1, 3, 5, 9]
    assert run.curve("validation", "bits_per_base", "5").values.tolist() == [1.9]
    old = read_run(write_run(tmp_path / "old", rows_of([validation(None)])))
    assert old.held_out_names == run.held_out_names and old.hidden_bases == []


def test_k_is_that_of_the_checkpoint_or_else_of_the_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of([None]), k=5)
    assert read_run(run).k == 5
    checkpoint = run / "checkpoints" / "step_00000100"
    checkpoint.mkdir(parents=True)
    assert read_run(run).k == 5, "the checkpoint is still being written"
    (checkpoint / "tokenizer.json").write_text('{"kind": "kmer", "k": 4}')
    assert read_run(run).k == 4
    assert read_run(write_run(tmp_path / "bpe", rows_of([None]), k=None)).k is None
    assert Run(Path("nowhere"), "x", []).k is None
