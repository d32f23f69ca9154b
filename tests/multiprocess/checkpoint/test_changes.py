"""`--allow-changes`: what is accepted is applied and recorded, and what can't fit leaves the run as it was."""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, read_metrics, run_ranks, write_prepared

from dnabert_rm.checkpoint.run_folder import read_state, saved_steps, step_folder

FLAGS = shlex.split(
    "--preset tiny --model.num_layers 1 --model.hidden_size 64 --global-batch 8 --window 66 --workers 0 --log-every 1 "
    "--save-every 6 --train.keep_last 0 --optim.warmup_steps 2"
)
SCHEDULED = ("step", "consumed_samples", "lr", "phase", "max_span", "mean_span")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same genome as 3-mers and as 4-mers."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    shards = [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)]
    for k in (3, 4):
        write_prepared(folder / f"k{k}", shards, k=k)
    return {k: folder / f"k{k}" for k in (3, 4)}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Finished runs of 6 steps, by k."""
    folder = tmp_path_factory.mktemp("finished")
    for k in (3, 4):
        run_ranks(1, *FLAGS, "--steps", 6, "--data", data[k], "--output", folder / f"k{k}")
    return {k: folder / f"k{k}" for k in (3, 4)}


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_goes_on_to_more_steps_only_if_changes_are_allowed(data, finished, tmp_path: Path) -> None:
    """From step 6 on, learning rate and phases are those of a run that had 12 steps from the start."""
    run = shutil.copytree(finished[4], tmp_path / "run")
    words = [*FLAGS, "--steps", 12, "--data", data[4]]
    before = contents(run)
    printed = run_ranks(1, *words, "--output", run, codes=[2])
    assert "train.steps was 6 and is 12 (with --allow-changes the run goes on to step 12; learning rate, p" in printed
    assert contents(run) == before
    printed = run_ranks(1, *words, "--output", run, "--allow-changes")
    assert printed.count("changed from step 6 on (--allow-changes): train.steps was 6 and is 12\n") == 1
    assert "done: step 12 of 12" in printed
    run_ranks(1, *words, "--output", tmp_path / "whole")
    rows, whole = read_metrics(run), read_metrics(tmp_path / "whole")
    for name in SCHEDULED:
        assert [row[name] for row in rows[6:]] == [row[name] for row in whole[6:]], name
    assert rows[:6] == read_metrics(finished[4])
    assert rows[6]["lr"] > 2 * rows[5]["lr"] and rows[6]["phase"] == 5, "the learning rate jumps, and decays again"
    assert saved_steps(run) == [6, 12]
    change = {"step": 6, "field": "train.steps", "old": 6, "new": 12}
    assert (run / "changes.jsonl").read_text() == json.dumps(change) + "\n"
    # The flag may stay, and the record too.
    assert "changed from" not in run_ranks(1, *words, "--output", run, "--allow-changes")
    assert (run / "changes.jsonl").read_text() == json.dumps(change) + "\n"


@pytest.mark.parametrize(
    ("k", "other", "change", "line"),
    [
        (3, 4, [], "a trained model can't change its tokenizer"),
        (4, 3, [], "a trained model can't change its tokenizer"),
        (4, 4, ["--model.num_layers", "2"], "model.num_layers was 1 and is 2; a trained model can't change its shape"),
    ],
)
def test_what_never_fits_is_refused_and_nothing_is_written(
    data, finished, tmp_path: Path, k: int, other: int, change: list[str], line: str
) -> None:
    run = shutil.copytree(finished[k], tmp_path / "run")
    before = contents(run)
    words = [*FLAGS, "--steps", 12, "--data", data[other], "--output", run, "--allow-changes", *change]
    printed = run_ranks(2, *words, codes=[2, 2])
    errors = [text for text in printed.splitlines() if "error" in text]
    assert len(errors) == 1 and line in errors[0], printed
    assert contents(run) == before


def test_accepted_changes_are_in_every_record(data, finished, tmp_path: Path) -> None:
    """A new run folder starts from a checkpoint with another seed, other data and an --init-from without effect."""
    write_prepared(tmp_path / "other", [[random_bases(np.random.default_rng(1), 700) for _ in range(9)]], k=4)
    source, run = step_folder(finished[4], 6), tmp_path / "new"
    words = [*FLAGS, "--steps", 8, "--data", tmp_path / "other", "--resume", source, "--output", run, "--seed", 7]
    printed = run_ranks(2, *words, "--init-from", source, "--allow-changes")
    old, new = read_state(source), read_state(step_folder(run, 8))
    assert (new.seed, new.step) == (7, 8) and new.fingerprint != old.fingerprint
    found = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert found == [
        {"step": 6, "field": "data fingerprint", "old": old.fingerprint, "new": new.fingerprint},
        {"step": 6, "field": "train.steps", "old": 6, "new": 8},
        {"step": 6, "field": "train.seed", "old": 42, "new": 7},
    ]
    assert printed.count("changed from step 6 on") == 1
    assert f"--init-from {source}: has no effect, because the run resumes {source}" in printed
    for path in (run, step_folder(run, 8)):
        config = tomllib.loads((path / "config.toml").read_text())
        assert config["model"]["init_from"] == "" and config["train"]["seed"] == 7
