"""metrics.jsonl and TensorBoard after a kill and a resume: no point twice, none lost."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from dnabert_rm.config import resolve
from dnabert_rm.train.metrics import MetricsWriter


def row(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "phase": 1}


def test_points_after_the_resumed_step_are_replaced(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0)
    for step in range(6):
        first.log(row(step, 1.0))
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 6, "lo')  # killed while it wrote
    second = MetricsWriter(tmp_path, 4)
    for step in range(4, 8):
        second.log(row(step, 2.0))
    second.close()

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(s, 1.0) for s in range(4)] + [(s, 2.0) for s in range(4, 8)]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(r["step"], r["loss"]) for r in rows]


def test_a_run_that_was_killed_before_its_first_checkpoint_has_no_step_twice(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        metrics_writer = MetricsWriter(tmp_path, 0)
        metrics_writer.log(row(0, loss))
        metrics_writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(0, 2.0)]


def test_what_was_flushed_is_there_without_a_close(tmp_path: Path) -> None:
    """As after SIGKILL: nobody closes the writers."""
    metrics_writer = MetricsWriter(tmp_path, 0)
    metrics_writer.log(row(0, 1.0))
    metrics_writer.flush()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [0]


def test_settings_stand_in_the_page_of_hyperparameters(tmp_path: Path) -> None:
    config = resolve({"optim": {"lr": 0.003}, "data": {"path": ["a", "b"]}, "train": {"output": "run"}})
    MetricsWriter(tmp_path, 0, settings=config.to_toml()).close()
    MetricsWriter(tmp_path, 5, settings=config.to_toml()).close()  # after a resume
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    pages = board.PluginTagToContent(hparams.PLUGIN_NAME)
    begun = hparams.parse_session_start_info_plugin_data(pages[hparams.SESSION_START_INFO_TAG]).hparams
    assert begun["optim.lr"].number_value == 0.003 and begun["data.path"].string_value == '["a", "b"]'
    assert begun["model.compile"].bool_value is False and begun["masking.policy"].string_value == "randommask"
    metrics = hparams.parse_experiment_plugin_data(pages[hparams.EXPERIMENT_TAG]).metric_infos
    assert {"train/loss", "validation_loss/span_14"} <= {metric.name.tag for metric in metrics}
