"""Runs with trackers on two gloo ranks: only rank 0 logs, a resume continues the run, a dead server does no harm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from support import free_port, random_bases, read_metrics, rewrite_manifest, start_ranks, wait_for, write_prepared
from wandb_files import logged_rows, run_ids, wandb_files

FLAGS = ["--preset", "tiny", "--steps", 8, "--global-batch", 8, "--window", 66, "--log-every", 1, "--save-every", 4,
         "--model.num_layers", 1, "--model.hidden_size", 64, "--validation.regions", 0]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return folder


@pytest.fixture
def train(prepared: Path, tmp_path: Path) -> Callable[..., str]:
    """Train on two ranks with flags; return what rank 0 printed."""

    def run(*words: str | Path, **variables: str) -> str:
        stores = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        command = [*map(str, FLAGS), "--data", prepared, "--output", tmp_path / "run", *words]
        found = wait_for(start_ranks(2, command, tmp_path, **(stores | variables)))
        printed = (tmp_path / "0.txt").read_text()
        assert found == [0, 0], printed
        return printed

    return run


def test_a_resume_from_an_earlier_checkpoint_continues_both_runs(train, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    printed = train("--train.trackers", "wandb,mlflow", "--train.stop_after", "6")
    assert "tensorboard --logdir" not in printed and not (run / "tensorboard").exists()
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    assert "resuming at step 4 of 8" in train("--train.trackers", "wandb,mlflow")

    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(8))
    files = wandb_files(run)
    assert len(files) == 2 and len(set.union(*map(run_ids, files))) == 1, "one rank logs"
    logged = [row for file in files for row in logged_rows(file)]
    expected = [(row["step"], row["loss"]) for row in rows]
    assert [(step, values["train/loss"]) for step, values in logged] == expected

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("dnabert_rm").experiment_id])
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == expected
    assert found.data.params["train.steps"] == "8"


def test_a_dead_server_leaves_the_training_unharmed_with_one_warning(train, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    printed = train("--train.trackers", "mlflow", MLFLOW_TRACKING_URI=dead, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    assert printed.count("warning") == 1 and "warning: train.trackers mlflow: " in printed
    assert "done: step 8 of 8" in printed and len(read_metrics(tmp_path / "run")) == 8


def test_a_run_of_an_earlier_release_resumes_with_trackers(train, tmp_path: Path) -> None:
    """Its configuration has no `train.trackers`."""
    train("--train.stop_after", "4")
    config = tmp_path / "run" / "checkpoints" / "step_00000004" / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("trackers")]
    assert len(kept) == len(lines) - 1
    config.write_text("".join(kept))
    rewrite_manifest(config.parent)
    train("--train.trackers", "wandb")
    assert [step for step, _ in logged_rows(wandb_files(tmp_path / "run")[0])] == [4, 5, 6, 7]
