"""TensorBoard and metrics.jsonl: the same numbers in both, no point twice after a resume."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.utils.files import flush_to_disk, read_json_lines, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
"""The row's object of held-out results by curve; their tags are `validation_loss/span_6` and so on."""
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
"""TensorBoard's page "custom scalars"."""
COMPARED = ("train/loss", "train/base_accuracy", "validation_loss/span_6", "validation_loss/span_14")
"""Columns of TensorBoard's page "HParams", beside the settings."""


class MetricsWriter:
    """The writers of rank 0. A resumed run goes on in the same curves, from its first step.

    TensorBoard has the steps in the run's folder, and the losses by tokens in a second one below it: a point's
    position is a number of tokens there, and what a resume drops is counted in them.
    """

    def __init__(self, run: Path, first_step: int, first_tokens: int = 0, settings: str = "") -> None:
        """Points at `first_step` and later, from before a kill, are dropped from both records.

        Args: `first_tokens` consumed before `first_step`; `settings` the configuration as TOML, for TensorBoard.
        """
        self._path, self._events = run / METRICS_NAME, run / TENSORBOARD_NAME
        drop_later_rows(self._path, first_step)
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._board = _writer(self._events, first_step)
        self._by_tokens = _writer(self._events / BY_TOKENS_NAME, first_tokens + 1)
        self._board.add_custom_scalars(LAYOUT)
        if settings:
            self._board.add_text(
                "configuration", "".join(f"    {line}\n" for line in settings.splitlines()), first_step
            )
            _add_hyperparameters(self._board, settings)

    def log(self, row: dict[str, Any], spans: NDArray[np.int64] | None = None) -> None:
        """One logged step: `row["step"]` and the values; `spans` of its windows, for a histogram."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        held_out = {
            f"{VALIDATION}_{name}/{curve}": value
            for curve, values in (row.get(VALIDATION) or {}).items()
            for name, value in values.items()
        }
        scalars = {tag: row.get(name) for name, tag in TAGS.items()} | held_out
        for tag, value in scalars.items():
            if value is not None:
                self._board.add_scalar(tag, value, row["step"])
        if (tokens := row.get("consumed_tokens")) is not None:
            for tag, value in {**{TAGS[name]: row.get(name) for name in BY_TOKENS}, **held_out}.items():
                if value is not None:
                    self._by_tokens.add_scalar(f"by_tokens/{tag}", value, tokens)
        if spans is not None:
            self._board.add_histogram("masking/spans", spans, row["step"], bins=np.arange(spans.max() + 2) - 0.5)

    def flush(self) -> None:
        """Put what was logged on disk: to be called before a checkpoint of these steps becomes visible."""
        os.fsync(self._lines.fileno())
        for writer in (self._board, self._by_tokens):
            writer.flush()
        for path in self._events.rglob("events.*"):
            flush_to_disk(path)

    def close(self) -> None:
        """Write what is buffered."""
        self._lines.close()
        self._board.close()
        self._by_tokens.close()


def _writer(folder: Path, first: int) -> SummaryWriter:
    """A writer that replaces the points from `first` on that an earlier one left.

    A run that was killed before its first checkpoint begins again at step 0, and has points to drop.
    """
    from torch.utils.tensorboard import SummaryWriter

    began_before = any(folder.glob("events.*"))
    return SummaryWriter(str(folder), purge_step=first if began_before else None)


def _add_hyperparameters(board: SummaryWriter, settings: str) -> None:
    """The configuration as the page "HParams", so that runs can be sorted by it.

    `SummaryWriter.add_hparams` would open one more event file, and a run of its own in the list.
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
    """Keep only whole rows of steps before `first_step`; a torn last line goes too."""
    if not path.exists():
        return
    rows = [row for row in read_json_lines(path) if row["step"] < first_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
