"""Metrics of a run: the sums and means of a step, and their writer to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.masking.collator import IGNORE
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.model.flops import ModelShape, peak_flops, training_flops_per_step
from dnabert_rm.utils.files import flush_to_disk, read_json_lines, write_text

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from dnabert_rm.train.engine import Engine

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
TAGS = {
    "loss": "train/loss",
    "masked_accuracy": "train/masked_accuracy",
    "base_accuracy": "train/base_accuracy",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "phase": "masking/phase",
    "max_span": "masking/max_span",
    "mean_span": "masking/mean_span",
    "masked_fraction": "masking/masked_fraction",
    "tokens_per_second": "speed/tokens_per_second",
    "tflops_per_rank": "speed/tflops_per_rank",
    "mfu": "speed/mfu",
    "data_wait": "speed/data_wait",
    "save_seconds": "speed/save_seconds",
    "replaced_windows": "progress/replaced_windows",
    "validation_seconds": "speed/validation_seconds",
    "memory_gb": "speed/memory_gb",
    "epoch": "progress/epoch",
    "consumed_tokens": "progress/consumed_tokens",
    "global_batch": "progress/global_batch",
    "loss_scale": "train/loss_scale",
}

VALIDATION = "validation"
"""Key of a row's validation results by curve; their tags are `validation_loss/span_6` and so on."""
BY_TOKENS_NAME = "by_tokens"
BY_TOKENS = ("loss", "masked_accuracy", "base_accuracy")
LAYOUT = {
    "the curves that matter first": {
        "training loss (it jumps where the spans grow)": ["Multiline", ["train/loss"]],
        "held-out loss at fixed spans": ["Multiline", ["validation_loss/.*"]],
        "masked accuracy, tokens and bases": ["Multiline", ["train/masked_accuracy", "train/base_accuracy"]],
        "tokens a second": ["Multiline", ["speed/tokens_per_second"]],
    }
}
"""Layout of TensorBoard's page "Custom Scalars"."""
COMPARED = ("train/loss", "train/base_accuracy", "validation_loss/span_6", "validation_loss/span_14")
"""Columns of TensorBoard's page "HParams", beside the settings."""


class BatchCounts(NamedTuple):
    """Counts over batches, known before their forward pass."""

    num_masked: float
    num_tokens: float
    span_sum: float
    num_windows: float
    num_replaced: float
    """Replacement samples for windows in bad shards."""


def count_batches(batches: list[dict[str, torch.Tensor]]) -> BatchCounts:
    """Return the counts of one rank's batches."""
    return BatchCounts(
        num_masked=float(sum(int((batch["targets"] != IGNORE).sum()) for batch in batches)),
        num_tokens=float(sum(batch["input_ids"].numel() for batch in batches)),
        span_sum=float(sum(int(batch["span"].sum()) for batch in batches)),
        num_windows=float(sum(len(batch["samples"]) for batch in batches)),
        num_replaced=float(sum(int(batch["num_replaced"]) for batch in batches)),
    )


@dataclass(frozen=True)
class StepSums:
    """Sums of one step over its global batch, that is over all batches of all ranks."""

    loss: float
    num_right: float
    """Masked tokens that were predicted right."""
    num_right_bases: float
    num_stopping: float
    """Ranks that were asked to stop."""
    counts: BatchCounts

    def to_result(
        self, step: int, k: int | None, grad_norm: float, *, seconds: float, data_seconds: float
    ) -> StepResult:
        """Return the means over masked tokens; `k` is the k-mer length, None for other tokenizers."""
        counts = self.counts
        divisor = max(1.0, counts.num_masked)
        return StepResult(
            step=step,
            loss=self.loss / divisor,
            masked_accuracy=self.num_right / divisor,
            base_accuracy=self.num_right_bases / divisor / k if k else None,
            num_masked=int(counts.num_masked),
            num_tokens=int(counts.num_tokens),
            mean_span=counts.span_sum / counts.num_windows,
            num_replaced=int(counts.num_replaced),
            grad_norm=grad_norm,
            seconds=seconds,
            data_wait=data_seconds / seconds,
            stop_wanted=self.num_stopping > 0,
        )


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step over its global batch."""

    step: int
    loss: float
    """Mean over the masked tokens of the global batch, nats."""
    masked_accuracy: float
    base_accuracy: float | None
    """Share of right bases in masked k-mers; None without k-mers."""
    num_masked: int
    num_tokens: int
    """Tokens of all windows, [CLS] and [SEP] included."""
    mean_span: float
    num_replaced: int
    grad_norm: float
    """Global gradient norm before clipping."""
    seconds: float
    data_wait: float
    """Share of `seconds` spent waiting for the loader."""
    stop_wanted: bool
    """Whether any rank was asked to stop."""


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
    epoch_windows: int,
    consumed_tokens: int,
) -> dict[str, Any]:
    """Return the row of metrics.jsonl for a step; `state` is the one after the step."""
    ranks = engine.ranks
    num_windows = state.plan.batch_of_step(result.step)
    flops = training_flops_per_step(shape, num_windows, result.num_tokens // num_windows, result.num_masked)
    flops_per_second = flops / result.seconds / ranks.world_size
    peak = peak_flops(ranks.device_name)
    return {
        "step": result.step,
        "consumed_samples": state.consumed_samples,
        "loss": result.loss,
        "masked_accuracy": result.masked_accuracy,
        "base_accuracy": result.base_accuracy,
        "lr": learning_rate,
        "grad_norm": result.grad_norm,
        "loss_scale": engine.loss_scale,
        "skipped_steps": engine.skipped_steps,
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
        "epoch": state.consumed_samples / epoch_windows,
        "consumed_tokens": consumed_tokens,
    }


class MetricsWriter:
    """Writer of metrics.jsonl and TensorBoard events, on rank 0. A resumed run continues the same curves.

    TensorBoard has the curves by step in the run's folder, and the losses by number of tokens in a subfolder.
    """

    def __init__(self, run: Path, first_step: int, first_tokens: int = 0, settings: str = "") -> None:
        """Open both records and drop their points at `first_step` and later, which a killed run left.

        Args: `first_tokens` consumed before `first_step`; `settings` the configuration as TOML, for TensorBoard.
        """
        self._path = run / METRICS_NAME
        self._events = run / TENSORBOARD_NAME
        drop_later_rows(self._path, first_step)
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._board = _summary_writer(self._events, first_step)
        self._by_tokens = _summary_writer(self._events / BY_TOKENS_NAME, first_tokens + 1)
        self._board.add_custom_scalars(LAYOUT)
        if settings:
            text = "".join(f"    {line}\n" for line in settings.splitlines())
            self._board.add_text("configuration", text, first_step)
            _add_hyperparameters(self._board, settings)

    def log(self, row: dict[str, Any], spans: NDArray[np.int64] | None = None) -> None:
        """Write one row, whose step is `row["step"]`; `spans` of its windows become a histogram."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        step = row["step"]
        validation = {
            f"{VALIDATION}_{name}/{curve}": value
            for curve, values in (row.get(VALIDATION) or {}).items()
            for name, value in values.items()
        }
        by_step = {tag: row.get(name) for name, tag in TAGS.items()} | validation
        for tag, value in by_step.items():
            if value is not None:
                self._board.add_scalar(tag, value, step)
        if (tokens := row.get("consumed_tokens")) is not None:
            by_tokens = {TAGS[name]: row.get(name) for name in BY_TOKENS} | validation
            for tag, value in by_tokens.items():
                if value is not None:
                    self._by_tokens.add_scalar(f"by_tokens/{tag}", value, tokens)
        if spans is not None:
            self._board.add_histogram("masking/spans", spans, step, bins=np.arange(spans.max() + 2) - 0.5)

    def flush(self) -> None:
        """Flush all rows to disk; to be called before a checkpoint of these steps becomes visible."""
        os.fsync(self._lines.fileno())
        for writer in (self._board, self._by_tokens):
            writer.flush()
        for path in self._events.rglob("events.*"):
            flush_to_disk(path)

    def close(self) -> None:
        """Write buffered events and close the files."""
        self._lines.close()
        self._board.close()
        self._by_tokens.close()


def _summary_writer(folder: Path, first: int) -> SummaryWriter:
    """Return a TensorBoard writer that replaces earlier points from `first` on.

    A run that was killed before its first checkpoint starts again at step 0, and also has points to drop.
    """
    from torch.utils.tensorboard import SummaryWriter

    has_events = any(folder.glob("events.*"))
    return SummaryWriter(str(folder), purge_step=first if has_events else None)


def _add_hyperparameters(board: SummaryWriter, settings: str) -> None:
    """Add the configuration to the page "HParams", where runs can be sorted by it.

    `SummaryWriter.add_hparams` is not used, because it would open another event file and list it as a separate run.
    """
    from torch.utils.tensorboard.summary import hparams

    values = {
        f"{section}.{name}": value if isinstance(value, int | float | str) else json.dumps(value)
        for section, fields in tomllib.loads(settings).items()
        for name, value in fields.items()
    }
    for summary in hparams(values, dict.fromkeys(COMPARED, 0.0)):
        board._get_file_writer().add_summary(summary)


def drop_later_rows(path: Path, first_step: int) -> None:
    """Keep only whole rows of steps before `first_step`; an incomplete last line is dropped too."""
    if not path.exists():
        return
    rows = [row for row in read_json_lines(path) if row["step"] < first_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
