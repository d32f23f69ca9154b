"""Metrics: means of a step, and records in which no point is lost or doubled after a kill and a resume."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams
from validated_rows import validation

from dnabert_rm.config import resolve
from dnabert_rm.masking.collator import IGNORE
from dnabert_rm.train.metrics import MetricsWriter
from dnabert_rm.train.step_result import BatchCounts, StepSums, count_batches


def wait_for_another_name() -> None:
    """Wait a second. TensorBoard reads files by name: second of creation, then a counter whose 10 sorts before 9."""
    time.sleep(1)


def row(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "phase": 1}


def test_ignored_targets_are_not_counted_as_masked() -> None:
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.int64),
        "targets": torch.tensor([7, 8, IGNORE]),
        "span": torch.tensor([6, 8]),
        "samples": torch.tensor([0, 1]),
        "num_replaced": torch.tensor(1),
    }
    assert count_batches([batch, batch]) == BatchCounts(
        num_masked=4, weight=4, num_tokens=20, span_sum=28, num_windows=4, num_replaced=2
    )


def test_a_result_has_the_means_over_masked_tokens() -> None:
    sums = StepSums(60.0, 60.0, 10.0, 90.0, 1.0, 2.0, BatchCounts(20.0, 20.0, 100.0, 12.0, 2.0, 0.0))
    result = sums.to_result(3, 6, 0.5, seconds=2.0, data_seconds=0.5)
    assert (result.loss, result.masked_accuracy, result.base_accuracy) == (3.0, 0.5, 0.75)
    assert (result.mean_span, result.data_wait, result.stop_wanted, result.num_written) == (6.0, 0.25, True, 2)
    assert sums.to_result(3, None, 0.5, seconds=2.0, data_seconds=0.5).base_accuracy is None


def test_a_step_without_masked_tokens_has_loss_zero() -> None:
    sums = StepSums(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, BatchCounts(0.0, 0.0, 10.0, 6.0, 1.0, 0.0))
    assert sums.to_result(0, 6, 0.0, seconds=1.0, data_seconds=0.0).loss == 0.0


def test_losses_are_divided_by_the_weights_and_accuracies_by_the_masked_tokens() -> None:
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.int64),
        "targets": torch.tensor([7, 8]),
        "base_weights": torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 1.0, 1.0, 1.0]]),
        "span": torch.tensor([6, 8]),
        "samples": torch.tensor([0, 1]),
        "num_replaced": torch.tensor(0),
    }
    counts = count_batches([batch, batch])
    assert (counts.num_masked, counts.weight) == (4, 2.75)
    result = StepSums(5.5, 11.0, 2.0, 8.0, 0.0, 0.0, counts).to_result(0, 4, 0.5, seconds=1.0, data_seconds=0.5)
    assert (result.loss, result.token_loss) == (2.0, 4.0)
    assert (result.masked_accuracy, result.base_accuracy, result.num_masked) == (0.5, 0.5, 4)


def test_points_after_the_resumed_step_are_replaced(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0)
    for step in range(6):
        first.log(row(step, 1.0))
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 6, "lo')  # killed in the middle of a row
    wait_for_another_name()
    second = MetricsWriter(tmp_path, 4)
    for step in range(4, 8):
        second.log(row(step, 2.0))
    second.close()

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(s, 1.0) for s in range(4)] + [(s, 2.0) for s in range(4, 8)]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(r["step"], r["loss"]) for r in rows]


def test_a_run_killed_before_its_first_checkpoint_has_no_duplicate_step(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        metrics_writer = MetricsWriter(tmp_path, 0)
        metrics_writer.log(row(0, loss))
        metrics_writer.close()
        wait_for_another_name()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(0, 2.0)]


def test_flushed_rows_are_on_disk_without_a_close(tmp_path: Path) -> None:
    """As after SIGKILL, which leaves the writers open."""
    metrics_writer = MetricsWriter(tmp_path, 0)
    metrics_writer.log(row(0, 1.0))
    metrics_writer.flush()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [0]


def test_settings_are_on_the_hyperparameters_page(tmp_path: Path) -> None:
    config = resolve({"optim": {"lr": 0.003}, "data": {"path": ["a", "b"]}, "train": {"output": "run"}})
    MetricsWriter(tmp_path, 0, settings=config.to_toml()).close()
    wait_for_another_name()
    MetricsWriter(tmp_path, 5, settings=config.to_toml()).close()  # after a resume
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    pages = board.PluginTagToContent(hparams.PLUGIN_NAME)
    begun = hparams.parse_session_start_info_plugin_data(pages[hparams.SESSION_START_INFO_TAG]).hparams
    assert begun["optim.lr"].number_value == 0.003 and begun["data.path"].string_value == '["a", "b"]'
    assert begun["model.compile"].bool_value is False and begun["masking.policy"].string_value == "randommask"
    assert "train.output" not in begun, "it differs between all runs"
    assert hparams.EXPERIMENT_TAG not in pages, "TensorBoard lists the settings, those that differ first"


def test_bits_per_base_and_their_lines_are_on_the_board(tmp_path: Path) -> None:
    metrics_writer = MetricsWriter(tmp_path, 0)
    metrics_writer.log(row(9, 1.0) | {"consumed_tokens": 640, "validation": validation(1.842, markov=1.931)})
    metrics_writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = {"markov_hidden_5": 1.931, "composition_hidden_5": 1.987, "guessing": 2.0}
    expected = {"bits_per_base/hidden_5": 1.842} | {f"validation_lines/{name}": value for name, value in lines.items()}
    for tag, value in expected.items():
        assert [(event.step, event.value) for event in board.Scalars(tag)] == [(9, pytest.approx(value))]
    by_tokens = EventAccumulator(str(tmp_path / "tensorboard" / "by_tokens")).Reload()
    assert [event.step for event in by_tokens.Scalars("x_tokens/bits_per_base/hidden_5")] == [640]
    held_out = {tag for tag in board.Tags()["scalars"] if tag.startswith("validation_loss/")}
    assert held_out == {"validation_loss/span_6", "validation_loss/span_8", "validation_loss/span_10"}
    layout = layout_pb2.Layout.FromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    first = layout.category[0].chart[0]
    assert first.title == "bits per base (guessing is 2)"
    drawn = {tag for tag in board.Tags()["scalars"] for line in first.multiline.tag if re.match(line, tag)}
    assert drawn == {"bits_per_base/hidden_5", "validation_lines/markov_hidden_5", "validation_lines/guessing"}
    # TensorBoard opens the first two groups; the curves by tokens are the last group of all.
    groups = [sorted({tag.partition("/")[0] for tag in one.Tags()["scalars"]}) for one in (board, by_tokens)]
    assert groups[0][:2] == ["bits_per_base", "train"] and groups[1] == ["x_tokens"] > [groups[0][-1]]
    assert {tag for tag in board.Tags()["scalars"] if tag.startswith("bits_per_base/")} == {
        f"bits_per_base/hidden_{hidden}" for hidden in (1, 3, 5, 9)
    }


def test_a_validation_without_bits_has_the_curves_of_earlier_releases(tmp_path: Path) -> None:
    metrics_writer = MetricsWriter(tmp_path, 0)
    metrics_writer.log(row(9, 1.0) | {"validation": validation(None)})
    metrics_writer.close()
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert "validation_loss/span_6" in tags and not any("bits_per_base" in tag for tag in tags)


def test_the_token_loss_is_drawn_only_where_it_differs_from_the_loss(tmp_path: Path) -> None:
    metrics_writer = MetricsWriter(tmp_path, 0)
    metrics_writer.log(row(0, 7.5) | {"token_loss": 7.5})
    metrics_writer.log(row(1, 7.5) | {"token_loss": 7.25})
    metrics_writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/token_loss")] == [(1, 7.25)]
