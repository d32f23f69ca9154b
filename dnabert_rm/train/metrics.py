"""Metrics of a run: sums and means of each step, written to metrics.jsonl, TensorBoard and trackers."""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.checkpoint.run_folder import METRICS_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.data.object_store import without_secrets
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.model.flops import ModelShape, peak_flops, training_flops_per_step
from dnabert_rm.train.step_result import StepResult
from dnabert_rm.train.trackers import TENSORBOARD, close_trackers, open_trackers
from dnabert_rm.train.validation_record import (
    BITS,
    COMPARED_BASES,
    COMPOSITION,
    GUESSING,
    GUESSING_BITS,
    MARKOV,
    VALIDATION,
    bits_by_hidden,
    loss_curves,
    markov_bits,
    model_bits,
    validation_of,
)
from dnabert_rm.utils.files import flush_to_disk, read_json_lines, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from dnabert_rm.train.engine import Engine

TENSORBOARD_NAME = "tensorboard"
TAGS = {
    "loss": "train/loss",
    "token_loss": "train/token_loss",
    "masked_accuracy": "train/masked_accuracy",
    "base_accuracy": "train/base_accuracy",
    "lr": "train/learning_rate",
    "tokens_per_second": "train/tokens_per_second",
    "phase": "train_masking/phase",
    "max_span": "train_masking/max_span",
    "mean_span": "train_masking/mean_span",
    "masked_fraction": "train_masking/masked_fraction",
    "grad_norm": "train_optimizer/gradient_norm",
    "loss_scale": "train_optimizer/loss_scale",
    "epoch": "train_progress/epoch",
    "consumed_tokens": "train_progress/consumed_tokens",
    "global_batch": "train_progress/global_batch",
    "replaced_windows": "train_progress/replaced_windows",
    "tflops_per_rank": "train_speed/tflops_per_rank",
    "mfu": "train_speed/mfu",
    "data_wait": "train_speed/data_wait",
    "save_seconds": "train_speed/save_seconds",
    "validation_seconds": "train_speed/validation_seconds",
    "memory_gb": "train_speed/memory_gb",
}
"""TensorBoard's tags by metric. TensorBoard sorts groups by name and opens the first two: bits_per_base and train."""
LINES = "validation_lines"
"""Group of the lines to compare bits per base with."""

BY_TOKENS_NAME = "by_tokens"
"""Folder of the curves by tokens. Their groups begin with `BY_TOKENS_PREFIX`, so that they are the last ones."""
BY_TOKENS_PREFIX = "x_tokens"
BY_TOKENS = ("loss", "masked_accuracy", "base_accuracy")
COMPARED_TAG = f"{BITS}/hidden_{COMPARED_BASES}"
LAYOUT = {
    "the curves that matter first": {
        "bits per base (guessing is 2)": [
            "Multiline",
            [f"{COMPARED_TAG}$", f"{LINES}/{MARKOV}_hidden_{COMPARED_BASES}$", f"{LINES}/{GUESSING}$"],
        ],
        "training loss (it jumps where the spans grow)": ["Multiline", ["train/loss"]],
        "held-out loss at fixed spans": ["Multiline", ["validation_loss/.*"]],
        "masked accuracy, tokens and bases": ["Multiline", ["train/masked_accuracy", "train/base_accuracy"]],
        "tokens a second": ["Multiline", ["train/tokens_per_second"]],
    }
}
"""Layout of TensorBoard's page "Custom Scalars"."""


def metrics_row(
    result: StepResult,
    state: TrainState,
    schedule: MaskSchedule,
    engine: Engine,
    *,
    shape: ModelShape,
    learning_rate: float,
    save_seconds: float | None,
    peak_memory_bytes: int,
    epoch_samples: float,
    consumed_tokens: int,
) -> dict[str, Any]:
    """Return one step's metrics as a dict for metrics.jsonl. `state` is the training state after the step."""
    ranks = engine.ranks
    num_windows = state.plan.batch_of_step(result.step)
    flops = training_flops_per_step(shape, num_windows, result.num_tokens // num_windows, result.num_masked)
    flops_per_second = flops / result.seconds / ranks.world_size
    peak = peak_flops(ranks.device_name)
    return {
        "step": result.step,
        "consumed_samples": state.consumed_samples,
        "loss": result.loss,
        "token_loss": result.token_loss,
        "masked_accuracy": result.masked_accuracy,
        "base_accuracy": result.base_accuracy,
        "lr": learning_rate,
        "grad_norm": result.grad_norm,
        "loss_scale": result.loss_scale,
        "skipped_steps": result.skipped_steps,
        "global_batch": num_windows,
        "phase": int(schedule.phase_of(result.step)),
        "max_span": schedule.max_span(result.step),
        "mean_span": result.mean_span,
        "replaced_windows": result.num_replaced,
        "masked_fraction": result.num_masked / (result.num_tokens - 2 * num_windows),
        "tokens_per_second": result.num_tokens / result.seconds,
        "tflops_per_rank": flops_per_second / 1e12,
        "mfu": flops_per_second / peak if peak else None,
        "data_wait": result.data_wait,
        "save_seconds": save_seconds,
        "memory_gb": peak_memory_bytes / 1e9,
        "epoch": state.consumed_samples / epoch_samples,
        "consumed_tokens": consumed_tokens,
    }


class MetricsWriter:
    """Writer of metrics.jsonl, TensorBoard events and trackers, on rank 0. A resumed run continues the same curves."""

    def __init__(
        self,
        run: Path,
        first_step: int,
        first_tokens: int = 0,
        settings: str = "",
        trackers: Sequence[str] = (TENSORBOARD,),
    ) -> None:
        """Open metrics.jsonl and the trackers. Remove metrics that a killed run wrote for step `first_step` or later.

        Args: `first_tokens` is the number of tokens consumed before `first_step`. `settings` is the run configuration
        as TOML text, to show in the trackers. `trackers` are names as in `train.trackers`.
        """
        settings = without_secrets(settings)  # trackers publish it
        self._path = run / METRICS_NAME
        last_step = drop_later_rows(self._path, first_step)
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._board = (
            TensorBoardWriter(run / TENSORBOARD_NAME, first_step, first_tokens, settings)
            if TENSORBOARD in trackers
            else None
        )
        self._trackers = open_trackers(trackers, run, tomllib.loads(settings), last_step)

    def log(self, row: dict[str, Any], spans: NDArray[np.int64] | None = None) -> None:
        """Write the metrics `row` of a step. TensorBoard also gets a histogram of `spans`.

        `spans` (windows,) int64 holds the mask span length of each window in the global batch.
        """
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        validation = validation_scalars(validation_of(row))
        by_step = {tag: row.get(name) for name, tag in TAGS.items()} | validation
        if row.get("token_loss") == row.get("loss"):  # a second curve would only repeat the first
            del by_step[TAGS["token_loss"]]
        by_tokens = {TAGS[name]: row.get(name) for name in BY_TOKENS} | validation
        values = _without_none(by_step)
        if self._board:
            self._board.log(row["step"], values, row.get("consumed_tokens"), _without_none(by_tokens), spans)
        for tracker in self._trackers:
            tracker.log(row["step"], values)

    def flush(self) -> None:
        """Flush metrics.jsonl and TensorBoard to disk.

        Call this before saving a checkpoint. A run that resumes from the checkpoint does not write the metrics of
        completed steps again.
        """
        os.fsync(self._lines.fileno())
        if self._board:
            self._board.flush()

    def close(self, failed: bool = False) -> None:
        """Write buffered metrics and close the files. Trackers mark the run as failed if `failed`."""
        with contextlib.ExitStack() as stack:  # all are closed, even if the disk is full for the first
            stack.callback(close_trackers, self._trackers, failed)
            if self._board:
                stack.callback(self._board.close)
            stack.callback(self._lines.close)


class TensorBoardWriter:
    """Writer of TensorBoard events.

    The curves in `tensorboard/` have the step on the x-axis. The curves of losses and accuracies in
    `tensorboard/by_tokens/` have the number of consumed tokens on the x-axis.
    """

    def __init__(self, folder: Path, first_step: int, first_tokens: int, settings: str) -> None:
        """Open event files in `folder`. See `MetricsWriter` for the other arguments."""
        self._events = folder
        self._board = _summary_writer(folder, first_step)
        self._by_tokens = _summary_writer(folder / BY_TOKENS_NAME, first_tokens + 1)
        self._board.add_custom_scalars(LAYOUT)
        if settings:
            text = "".join(f"    {line}\n" for line in settings.splitlines())
            self._board.add_text("configuration", text, first_step)
            _add_hyperparameters(self._board, settings)

    def log(
        self,
        step: int,
        by_step: dict[str, float],
        tokens: int | None,
        by_tokens: dict[str, float],
        spans: NDArray[np.int64] | None,
    ) -> None:
        """Write values, keyed by tag, and a histogram of `spans` (windows,) int64."""
        for tag, value in by_step.items():
            self._board.add_scalar(tag, value, step)
        if tokens is not None:
            for tag, value in by_tokens.items():
                self._by_tokens.add_scalar(f"{BY_TOKENS_PREFIX}/{tag}", value, tokens)
        if spans is not None:
            self._board.add_histogram("train_masking/spans", spans, step, bins=np.arange(spans.max() + 2) - 0.5)

    def flush(self) -> None:
        """Flush all events to disk."""
        for writer in (self._board, self._by_tokens):
            writer.flush()
        for path in self._events.rglob("events.*"):
            flush_to_disk(path)

    def close(self) -> None:
        """Write buffered events and close the files."""
        self._board.close()
        self._by_tokens.close()


def _without_none(values: Mapping[str, float | None]) -> dict[str, float]:
    return {tag: value for tag, value in values.items() if value is not None}


def validation_scalars(validation: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the values of a validation for TensorBoard, keyed by tag, e.g. "validation_loss/span_6".

    Bits per base have tags such as "bits_per_base/hidden_5". The reference lines have the tags
    "validation_lines/composition_hidden_5", "validation_lines/markov_hidden_5" and "validation_lines/guessing".
    """
    scalars: dict[str, float | None] = {
        f"{VALIDATION}_{name}/{curve}": value
        for curve, values in loss_curves(validation).items()
        for name, value in values.items()
    }
    if not (bits := model_bits(validation)):
        return scalars
    chains = markov_bits(validation).values()
    compared = {
        f"{BITS}/": bits,
        f"{LINES}/{COMPOSITION}_": bits_by_hidden(validation.get(COMPOSITION)),
        f"{LINES}/{MARKOV}_": {
            hidden: min(found) for hidden in bits if (found := [chain[hidden] for chain in chains if hidden in chain])
        },
    }
    for prefix, by_hidden in compared.items():
        scalars |= {f"{prefix}hidden_{hidden}": value for hidden, value in by_hidden.items()}
    return scalars | {f"{LINES}/{GUESSING}": GUESSING_BITS}


def _summary_writer(folder: Path, first: int) -> SummaryWriter:
    """Return a TensorBoard writer that drops existing points whose x-value is `first` or more.

    The x-axis shows steps or consumed tokens. Points are also dropped if `first` is 0, because a run that was killed
    before its first checkpoint restarts at step 0.
    """
    from torch.utils.tensorboard import SummaryWriter

    has_events = any(folder.glob("events.*"))
    return SummaryWriter(str(folder), purge_step=first if has_events else None)


def _add_hyperparameters(board: SummaryWriter, settings: str) -> None:
    """Add the configuration to TensorBoard's page "HParams", which can sort runs by a setting.

    Only the session's values are written. Without a list of hyperparameters in the events, TensorBoard makes one, with
    those first that differ between runs. `SummaryWriter.add_hparams` also writes another event file, which TensorBoard
    shows as a separate run. `train.output` is left out, because it differs between all runs.
    """
    from torch.utils.tensorboard.summary import hparams

    values = {
        f"{section}.{name}": value if isinstance(value, int | float | str) else json.dumps(value)
        for section, fields in tomllib.loads(settings).items()
        for name, value in fields.items()
        if (section, name) != ("train", "output")
    }
    _, session_start, session_end = hparams(values, {})
    for summary in (session_start, session_end):
        board._get_file_writer().add_summary(summary)


def drop_later_rows(path: Path, first_step: int) -> int:
    """Remove rows of `first_step` and later steps, and any incomplete last line, from the metrics file `path`.

    Returns the last step that was in the file, or -1.
    """
    if not path.exists():
        return -1
    rows = read_json_lines(path)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] < first_step))
    return max((row["step"] for row in rows), default=-1)
