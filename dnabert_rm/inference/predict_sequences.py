"""Predictions of a fine-tuned model for sequences of any length, streamed from a file to a table.

Shapes: C logits of a model, N rows.
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
from dnabert_rm.finetune.task_heads import TASK_CLASSES, Classes, Regression, Task
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.inference.model_runner import (
    Runner,
    adapter_base,
    load_adapted,
    load_model,
    read_json,
    take_device,
)
from dnabert_rm.inference.sequence_input import LONG, Tokens, Unit
from dnabert_rm.inference.window_stream import Outputs, Tally, Track, allowed_tokens, group_by_unit, model_outputs
from dnabert_rm.model.pretrained import NAME_FINETUNED, check_model_folder
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import atomic_outputs, check_output_file


@dataclass(frozen=True)
class Head:
    """What a fine-tuned model's logits mean, and how its sequences were read."""

    task: Task
    """Whose cells a row of logits becomes. A class for each base: `Classes`, because each base has a row of its own."""
    per_base: bool = False
    overlapping: bool = True
    max_tokens: int | None = None
    long: str = "middle"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model's outputs stand for, in order."""
        return self.task.labels

    def cells(self, logits: NDArray) -> list[list[str]]:
        """The cells of each row of logits (N, C), as in `finetune`'s predictions.csv; empty where they are NaN."""
        missing = np.isnan(logits).any(axis=1)
        filled = self.task.predictions(np.where(missing[:, None], 0, logits), np.zeros(len(logits)))
        empty = [""] * len(self.task.prediction_columns())
        return [empty if gone else row for row, gone in zip(filled, missing, strict=True)]


def read_head(folder: Path, config: Any) -> Head:
    """The head that `finetuning.json` describes; without that file, classes by the names in the model's configuration.

    `CheckpointError` where it does not describe this model.
    """
    path = folder / FINETUNING_FILE
    if not path.is_file():
        tokenizer = folder / "tokenizer_config.json"
        overlapping = read_json(tokenizer).get("overlapping", True) if tokenizer.is_file() else True
        labels = tuple(config.id2label[i] for i in range(config.num_labels))
        return Head(Classes(labels, labels), overlapping=overlapping)
    record = read_json(path)
    try:
        kind = TASK_CLASSES[record["task"]]
        labels = tuple(str(label) for label in record["labels"])
        scales = [tuple(map(float, record.get(name) or ())) for name in ("target_mean", "target_std")]
        if not labels or {len(scale) for scale in scales} - {len(labels) if kind is Regression else 0}:
            raise ValueError("its labels and targets don't fit together")
        head = Head(
            task=(Classes if kind.per_base else kind)(labels, labels, *scales),
            per_base=kind.per_base,
            overlapping=bool(record.get("overlapping", True)),
            max_tokens=None if record.get("max_tokens") is None else int(record["max_tokens"]),
            long=record.get("long") or "middle",
        )
        if head.long not in LONG:
            raise ValueError(f"long {head.long!r} is none of {', '.join(LONG)}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not describe a fine-tuned model ({error}); fine-tune again") from None
    return head


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model on its device."""

    head: Head
    model: torch.nn.Module
    runner: Runner
    positions: int

    def ask(self, sequences: list[bytes]) -> list[NDArray | None]:
        """Logits of each sequence, (C,), or (T, C) for bases; None where not one k-mer is known."""
        of_tokens = self.head.per_base
        return self.runner.run(
            self.runner.rows(sequences),
            lambda ids, mask: self.model(input_ids=ids, attention_mask=mask).logits,
            lambda logits, num_tokens: logits[1 : 1 + num_tokens] if of_tokens else logits,
        )


def load_predictor(folder: Path, batch_size: int, precision: str) -> Predictor:
    """The model in `folder`, which may hold LoRA adapters; `CheckpointError` where it is not a fine-tuned one."""
    base = adapter_base(folder)
    if base is None:
        check_model_folder(folder, NAME_FINETUNED)
    config = load_config(folder if base is None or (folder / "config.json").is_file() else base)
    head = read_head(folder, config)
    if base is not None:
        config.id2label = dict(enumerate(head.labels))
    if len(head.labels) != config.num_labels:
        raise CheckpointError(
            f"{folder / FINETUNING_FILE}: has {len(head.labels)} labels where the model has {config.num_labels} "
            "outputs; fine-tune again"
        )
    auto_class = AutoModelForTokenClassification if head.per_base else AutoModelForSequenceClassification
    if base is None:
        model: torch.nn.Module = load_model(auto_class, folder, config)
    else:
        model = load_adapted(auto_class, folder, base, config)
    tokenizer = load_tokenizer(
        folder if base is None or (folder / "vocab.txt").is_file() else base, config, head.overlapping
    )
    device = take_device()
    runner = Runner(tokenizer, device, precision, batch_size)
    return Predictor(head, model.to(device), runner, config.max_position_embeddings)


def predict(settings: InferenceSettings) -> Tally:
    """Write a row of predictions for each record or tile of `input` to the table `output`, in the input's order.

    Raises `ConfigError`, `CheckpointError` or, with the line, `DataError`; then no output is left.
    """
    check_output_file(settings.output, settings.overwrite)
    predictor = load_predictor(settings.model, settings.batch_size, settings.precision)
    head, tokenizer = predictor.head, predictor.runner.tokenizer
    room = (settings.max_tokens or head.max_tokens or predictor.positions) - 2
    tokens = Tokens(tokenizer.k, tokenizer.step, room)
    allowed_tokens(settings, tokens, predictor.positions)
    tally = Tally()
    # Logits of bases are as large as the batch; all others are a few numbers a window.
    num_sorted = {"num_sorted": 1} if head.per_base else {}
    answers = model_outputs(settings, tokens, settings.long or head.long, predictor.ask, tally, **num_sorted)
    with atomic_outputs(settings.output) as (aside,), open(aside, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if head.per_base:
            writer.writerow(["id", "position", *head.task.prediction_columns()])
            rows = base_rows(head, tokens, answers)
        else:
            names = ["id"] if settings.tile is None else ["contig", "start", "end"]
            writer.writerow([*names, *head.task.prediction_columns()])
            rows = unit_rows(head, answers, settings.tile is not None)
        for row in rows:
            writer.writerow(row)
            tally.rows += 1
            tally.empty += not row[-1]
    return tally


def unit_rows(head: Head, answers: Outputs, with_place: bool) -> Iterator[list[Any]]:
    """A row for each unit: its id, with `with_place` start and end, and the head's cells of its mean logits."""
    for unit, logits in mean_logits(answers):
        cells = head.cells(np.full((1, len(head.labels)), np.nan) if logits is None else logits[None])[0]
        yield [unit.name, *([unit.start, unit.end] if with_place else []), *cells]


def mean_logits(answers: Outputs) -> Iterator[tuple[Unit, NDArray | None]]:
    """Each unit and the mean (C,) of its windows' logits; None where the model was not asked for one of them."""
    for parts in group_by_unit(answers):
        found = np.zeros(0)
        num_windows = 0
        for window, logits in parts:
            unit = window.unit
            if logits is not None:
                found = logits.astype(np.float64) if num_windows == 0 else found + logits
                num_windows += 1
        yield unit, found / num_windows if num_windows else None


def base_rows(head: Head, tokens: Tokens, answers: Outputs) -> Iterator[list[Any]]:
    """A row for each base that a window covers: id, position in the record, and the head's cells.

    A base's logits are the mean of those of all k-mers that cover it, in all windows.
    """
    for parts in group_by_unit(answers):
        track = Track(len(head.labels))
        for window, logits in parts:
            yield from _rows_at(head, window.unit.name, track.start, track.take(window.start))
            track.cover(window.start, window.start + len(window.letters))
            if logits is not None:
                track.add(window.start, logits, tokens.step, tokens.k)
        yield from _rows_at(head, window.unit.name, track.start, track.take())


def _rows_at(head: Head, name: str, start: int, logits: NDArray) -> Iterable[list[Any]]:
    return ([name, start + i, *cells] for i, cells in enumerate(head.cells(logits)))
