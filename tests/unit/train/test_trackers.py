"""Trackers, with the real libraries: the values of metrics.jsonl, once each, and errors that don't reach the run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support import ROOT, free_port, read_metrics
from validated_rows import validation
from wandb_files import logged_rows, parameters, projects, run_ids, wandb_files

from dnabert_rm.config import resolve
from dnabert_rm.train import trackers
from dnabert_rm.train.metrics import MetricsWriter
from dnabert_rm.utils.errors import CheckpointError, ConfigError, StoppedError

URL = "s3://user:password@bucket/data?X-Amz-Signature=1f2e"
CONFIG = resolve({"data": {"path": URL}, "train": {"output": "run", "trackers": ["wandb", "mlflow"]}})
BOTH = CONFIG.train.trackers


@pytest.fixture(autouse=True)
def local_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 300.0)  # on a busy machine, a new database takes a while


def write_steps(run: Path, first: int, last: int, names: tuple[str, ...], settings: str = "", close: bool = True):
    """Log the steps from `first` to before `last`. The loss differs each time a step is logged."""
    writer = MetricsWriter(run, first, settings=settings, trackers=names)
    for step in range(first, last):
        writer.log(
            {
                "step": step,
                "loss": step + first / 100,
                "lr": 1e-3,
                "mfu": None,
                **({"validation": validation()} if step == 2 else {}),
            }
        )
    if close:
        writer.close()
    return writer


def mlflow_run(run: Path, experiment: str = "dnabert_rm"):
    """Return the only MLflow run, and the points of all its curves as (step, value)."""
    client = MlflowClient()
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(found) == 1
    [data] = found
    points = {
        tag: [(point.step, point.value) for point in client.get_metric_history(data.info.run_id, tag)]
        for tag in data.data.metrics
    }
    return data, points


def test_both_trackers_have_the_values_and_the_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_steps(run, 0, 4, BOTH, CONFIG.to_toml())
    rows = read_metrics(run)
    [file] = wandb_files(run)
    data, points = mlflow_run(run)
    logged = dict(logged_rows(file))
    assert list(logged) == [0, 1, 2, 3]
    for tag, name in (("train/loss", "loss"), ("train/learning_rate", "lr")):
        expected = [(row["step"], row[name]) for row in rows]
        assert [(step, values[tag]) for step, values in logged.items()] == expected
        assert points[tag] == expected
    assert "train_speed/mfu" not in points and "train_speed/mfu" not in logged[0]
    span = {step: values["validation_loss/span_6"] for step, values in logged.items() if len(values) > 2}
    assert list(span) == [2] and points["validation_loss/span_6"] == list(span.items())

    assert parameters(file)["train"]["steps"] == CONFIG.train.steps
    assert data.data.params["train.steps"] == str(CONFIG.train.steps)
    # Trackers publish the settings, so URLs have neither password nor signature.
    assert parameters(file)["data"]["path"] == ["s3://bucket/data?…"]
    assert data.data.params["data.path"] == "['s3://bucket/data?…']"
    assert len(data.data.params) == sum(len(section) for section in CONFIG.to_dict().values())
    assert (data.info.run_name, data.info.status) == ("run", "FINISHED")


def test_a_resume_continues_the_runs_and_repeats_no_step(tmp_path: Path) -> None:
    """Two kills, of which the second resume comes earlier than the first: neither step 4 nor step 7 is repeated."""
    run = tmp_path / "run"
    run.mkdir()
    for first, last in ((0, 8), (4, 6), (4, 10)):
        write_steps(run, first, last, BOTH)
    files = wandb_files(run)
    assert len(files) == 3 and len(set.union(*map(run_ids, files))) == 1
    logged = [(step, values["train/loss"]) for file in files for step, values in logged_rows(file)]
    expected = [(step, float(step)) for step in range(8)] + [(step, step + 0.04) for step in (8, 9)]
    assert logged == expected
    data, points = mlflow_run(run)
    assert points["train/loss"] == expected and data.info.status == "FINISHED"
    assert [row["step"] for row in read_metrics(run)] == list(range(10))


def test_a_tracker_that_is_added_later_gets_the_steps_from_there_on(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 6, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]
    write_steps(tmp_path, 4, 7, ("wandb", "tensorboard"))
    assert [step for step, _ in logged_rows(wandb_files(tmp_path)[0])] == [4, 5, 6]
    assert (tmp_path / "tensorboard").is_dir()


def test_a_changed_setting_does_not_end_a_resumed_mlflow_run(tmp_path: Path, capsys) -> None:
    for first, steps in ((0, 100), (2, 200)):
        settings = resolve({"data": {"path": "d"}, "train": {"output": "o", "steps": steps}}).to_toml()
        write_steps(tmp_path, first, first + 2, ("mlflow",), settings)
    data, points = mlflow_run(tmp_path)
    assert len(points["train/loss"]) == 4 and data.data.params["train.steps"] == "100"
    assert "warning" not in capsys.readouterr().err


def test_names_come_from_the_libraries_variables(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "yeast")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "fission")
    writer = write_steps(tmp_path, 0, 1, BOTH, close=False)
    writer.close(failed=True)
    assert projects(wandb_files(tmp_path)[0]) == {"yeast"}
    assert mlflow_run(tmp_path, "fission")[0].info.status == "FAILED"


def test_a_dead_server_gives_one_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    write_steps(tmp_path, 0, 5, ("mlflow",))
    assert len(read_metrics(tmp_path)) == 5
    printed = capsys.readouterr().err
    assert printed.count("warning") == 1 and "train.trackers mlflow:" in printed
    assert not (tmp_path / "mlflow_run.json").exists()


def test_a_server_that_never_answers_delays_only_the_end(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        writer = MetricsWriter(tmp_path, 0, trackers=("mlflow",))
        start = time.monotonic()
        for step in range(100):
            writer.log({"step": step, "loss": 1.0})
        assert time.monotonic() - start < 10  # MLflow waits two minutes for an answer
        writer.close()
        assert 1 <= time.monotonic() - start < 30
    assert "did not answer within 1 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, False), (KeyboardInterrupt(), False), (SystemExit(1), False),
        (StoppedError("stopped on request before the first step"), False),
        (CheckpointError("no space left"), True), (RuntimeError(), True),
    ],
)  # fmt: skip
def test_a_stop_is_no_failure_but_an_error_during_a_stop_is(error: BaseException | None, expected: bool) -> None:
    assert trackers.is_failure(error) is expected


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    """Python without site-packages has neither library. A folder `wandb`, as wandb writes it, is not the library."""
    (tmp_path / "wandb").mkdir()
    code = "from dnabert_rm.train.trackers import check_trackers; check_trackers(('tensorboard', '{}'))"
    for name in BOTH:
        done = subprocess.run(
            [sys.executable, "-S", "-c", code.format(name)],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        last = done.stderr.splitlines()[-1]
        assert last.endswith(f"train.trackers {name}: is not installed; run pip install 'dnabert_rm[{name}]'")
    trackers.check_trackers(("tensorboard", *BOTH))


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers comet: must be one of tensorboard, wandb, mlflow"):
        resolve({"data": {"path": "d"}, "train": {"output": "o", "trackers": ["comet"]}})
