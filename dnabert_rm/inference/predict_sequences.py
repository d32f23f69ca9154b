"""Predictions of a fine-tuned model for sequences of any length, streamed from file to table.

Shapes: C logits of the model, T k-mers, N rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from dnabert_rm.finetune.finetune_settings import FINETUNING_FILE
from dnabert_rm.finetune.pretrained_encoder import load_config, load_tokenizer
from dnabert_rm.finetune.task_heads import TASK_CLASSES, Regression, SequenceClassification, Task
from dnabert_rm.genome.vocabulary import vocabulary_files
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.inference.model_runner import BatchRunner, adapter_base, default_device, load_adapted, load_model
from dnabert_rm.inference.sequence_input import LONG, Region, Tokenization
from dnabert_rm.inference.window_stream import (
    RunningMean,
    Tally,
    WindowOutput,
    check_token_limits,
    group_by_region,
    model_outputs,
)
from dnabert_rm.model.pretrained import NAME_FINETUNED, check_model_folder
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import atomic_outputs, check_output_file, read_json


@dataclass(frozen=True)
class Head:
    """The task of a fine-tuned model, with the settings for tokenizing and cutting sequences."""

    task: Task
    """Converts logits to table cells. For `bases` it is `SequenceClassification`, because each base has its own row."""
    per_base: bool = False
    overlapping: bool = True
    max_tokens: int | None = None
    long: str = "middle"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the model's outputs, in order."""
        return self.task.labels

    def cells(self, logits: NDArray) -> list[list[str]]:
        """Return the cells of predictions.csv for logits (N, C). A row of NaN gives empty cells."""
        missing = np.isnan(logits).any(axis=1)
        filled = self.task.predictions(np.where(missing[:, None], 0, logits), np.zeros(len(logits)))
        empty = [""] * len(self.task.prediction_columns())
        return [empty if is_missing else row for row, is_missing in zip(filled, missing, strict=True)]


def read_head(folder: Path, config: Any) -> Head:
    """Read the head from `finetuning.json` in the model's folder.

    Without that file, the head is a classifier with the label names of the model's configuration. Raises
    `CheckpointError` if the file does not describe a fine-tuned model.
    """
    path = folder / FINETUNING_FILE
    if not path.is_file():
        tokenizer = folder / "tokenizer_config.json"
        overlapping = read_json(tokenizer).get("overlapping", True) if tokenizer.is_file() else True
        labels = tuple(config.id2label[i] for i in range(config.num_labels))
        return Head(SequenceClassification(labels, labels), overlapping=overlapping)
    record = read_json(path)
    try:
        kind = TASK_CLASSES[record["task"]]
        labels = tuple(str(label) for label in record["labels"])
        scales = [tuple(map(float, record.get(name) or ())) for name in ("target_mean", "target_std")]
        if not labels or {len(scale) for scale in scales} - {len(labels) if kind is Regression else 0}:
            raise ValueError("labels, target_mean and target_std do not match")
        head = Head(
            task=(SequenceClassification if kind.per_base else kind)(labels, labels, *scales),
            per_base=kind.per_base,
            overlapping=bool(record.get("overlapping", True)),
            max_tokens=None if record.get("max_tokens") is None else int(record["max_tokens"]),
            long=record.get("long") or "middle",
        )
        if head.long not in LONG:
            raise ValueError(f"long is {head.long!r}, not one of {', '.join(LONG)}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not describe a fine-tuned model ({error}); fine-tune again") from None
    return head


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model on its device."""

    head: Head
    model: torch.nn.Module
    runner: BatchRunner
    positions: int

    def forward(self, sequences: list[bytes]) -> list[NDArray | None]:
        """Return each sequence's logits (C,), or (T, C) per base.

        The result is None for a sequence without a known k-mer.
        """
        per_base = self.head.per_base
        return self.runner.run(
            self.runner.tokenize(sequences),
            lambda ids, mask: self.model(input_ids=ids, attention_mask=mask).logits,
            lambda logits, num_kmers: logits[1 : 1 + num_kmers] if per_base else logits,
        )


def load_predictor(folder: Path, batch_size: int, precision: str) -> Predictor:
    """Load a fine-tuned model or LoRA adapters. Raise `CheckpointError` if `folder` holds neither."""
    base = adapter_base(folder)
    if base is None:
        check_model_folder(folder, NAME_FINETUNED)
    config = load_config(folder if base is None or (folder / "config.json").is_file() else base)
    head = read_head(folder, config)
    if base is not None:
        config.id2label = dict(enumerate(head.labels))
    if len(head.labels) != config.num_labels:
        raise CheckpointError(
            f"{folder / FINETUNING_FILE}: has {len(head.labels)} labels, but the model has {config.num_labels} "
            "outputs; fine-tune again"
        )
    auto_class = AutoModelForTokenClassification if head.per_base else AutoModelForSequenceClassification
    if base is None:
        model: torch.nn.Module = load_model(auto_class, folder, config)
    else:
        model = load_adapted(auto_class, folder, base, config)
    tokenizer_folder = folder if base is None or vocabulary_files(folder) else base
    tokenizer = load_tokenizer(tokenizer_folder, config, head.overlapping)
    device = default_device()
    runner = BatchRunner(tokenizer, device, precision, batch_size)
    return Predictor(head, model.to(device), runner, config.max_position_embeddings)


def predict(settings: InferenceSettings) -> Tally:
    """Write predictions for each record or tile of `input` to the table `output`, in the order of the input.

    Raises `ConfigError`, `CheckpointError`, or `DataError` with the line number. After an error, no output file
    remains.
    """
    check_output_file(settings.output, settings.overwrite)
    predictor = load_predictor(settings.model, settings.batch_size, settings.precision)
    head = predictor.head
    tokenizer = predictor.runner.tokenizer
    max_kmers = (settings.max_tokens or head.max_tokens or predictor.positions) - 2
    tokenization = Tokenization(tokenizer.k, tokenizer.step, max_kmers)
    check_token_limits(settings, tokenization, predictor.positions)
    tally = Tally()
    # Per-base logits are large, so hold one batch at a time. Other outputs are a few numbers per window.
    limits = {"batches_sorted": 1} if head.per_base else {}
    outputs = model_outputs(settings, tokenization, settings.long or head.long, predictor.forward, tally, **limits)
    with (
        atomic_outputs(settings.output) as (temporary,),
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        if head.per_base:
            id_columns = ["id", "position"]
            rows = base_rows(head, tokenization, outputs)
        else:
            id_columns = ["id"] if settings.tile is None else ["contig", "start", "end"]
            rows = region_rows(head, outputs, settings.tile is not None)
        writer.writerow([*id_columns, *head.task.prediction_columns()])
        for row in rows:
            writer.writerow(row)
            tally.rows += 1
            tally.empty += not row[-1]
    return tally


def region_rows(head: Head, outputs: Iterable[WindowOutput], with_coordinates: bool) -> Iterator[list[Any]]:
    """Yield a row per region: its id, then start and end if `with_coordinates`, then its prediction cells."""
    for region, logits in mean_logits(outputs):
        cells = head.cells(np.full((1, len(head.labels)), np.nan) if logits is None else logits[None])[0]
        yield [region.name, *([region.start, region.end] if with_coordinates else []), *cells]


def mean_logits(outputs: Iterable[WindowOutput]) -> Iterator[tuple[Region, NDArray | None]]:
    """Yield each region with its logits (C,) averaged over windows, or with None if no window has an output."""
    for region, windows in group_by_region(outputs):
        total = np.zeros(0)
        num_windows = 0
        for _, logits in windows:
            if logits is not None:
                total = logits.astype(np.float64) if num_windows == 0 else total + logits
                num_windows += 1
        yield region, total / num_windows if num_windows else None


def base_rows(head: Head, tokenization: Tokenization, outputs: Iterable[WindowOutput]) -> Iterator[list[Any]]:
    """Yield a row for each base in a window: id, position in the record, and the prediction cells.

    A base's logits are the mean over all k-mers that cover it, in all windows.
    """
    for region, windows in group_by_region(outputs):
        means = RunningMean(len(head.labels))
        for window, logits in windows:
            yield from _rows_from(head, region.name, means.start, means.pop(window.start))
            means.extend(window.start, window.start + len(window.sequence))
            if logits is not None:
                means.add(window.start, logits, tokenization.stride, tokenization.k)
        yield from _rows_from(head, region.name, means.start, means.pop())


def _rows_from(head: Head, name: str, start: int, logits: NDArray) -> Iterable[list[Any]]:
    return ([name, start + i, *cells] for i, cells in enumerate(head.cells(logits)))
