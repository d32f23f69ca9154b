"""The output folder of fine-tuning: checked before, cleared, written; `scores.json` last of all."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dnabert_rm import __version__
from dnabert_rm.finetune.finetune_settings import (
    CHECKPOINTS_FOLDER,
    FINETUNING_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TENSORBOARD_FOLDER,
    FinetuneSettings,
)
from dnabert_rm.finetune.table_splits import Splits
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import writable_parent, write_text


def check_output(settings: FinetuneSettings) -> None:
    """`ConfigError` where results, or the pretrained model itself, would be written over, or nothing can be."""
    output = settings.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; name a folder")
    writable_parent(output, f"--output {output}")
    if settings.model.resolve() == (output / MODEL_FOLDER).resolve():
        raise ConfigError(
            f"--output {output}: the fine-tuned model would replace --model {settings.model}; name another"
        )
    held = [name for name in (SCORES_FILE, MODEL_FOLDER, PREDICTIONS_FILE) if (output / name).exists()]
    if held and not settings.overwrite:
        raise ConfigError(
            f"--output {output}: holds {', '.join(held)} already; name another folder or pass --overwrite"
        )


def clear_output(settings: FinetuneSettings) -> None:
    """Make the folder; what an earlier run of this command finished there goes, anything else stays."""
    output = settings.output
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / CHECKPOINTS_FOLDER, ignore_errors=True)
    if (output / SCORES_FILE).exists():
        (output / SCORES_FILE).unlink()
        (output / PREDICTIONS_FILE).unlink(missing_ok=True)
        for folder in (MODEL_FOLDER, TENSORBOARD_FOLDER):
            shutil.rmtree(output / folder, ignore_errors=True)


def describe(settings: FinetuneSettings, splits: Splits, metrics: dict[str, Any]) -> dict[str, Any]:
    """What `scores.json` says of the data, the scores, and how to get them again."""
    task = splits.task
    return {
        "data_set": settings.name,
        "task": task.name,
        "classes" if task.name in ("classes", "bases") else "labels": list(task.labels),
        "splits": {name: {"file": str(table.path), "rows": len(table)} for name, table in splits.items()},
        "weights": "random" if settings.from_scratch else "pretrained",
        "metrics": metrics,
        "seed": settings.seed,
        "settings": settings.to_json(),
        "versions": {"dnabert_rm": __version__, "python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "scikit-learn", "numpy")},
    }


def write_results(
    settings: FinetuneSettings,
    splits: Splits,
    max_tokens: int,
    model: Any,
    tokenizer: Any,
    test: Any,
    scores: dict[str, Any],
) -> None:
    """Write the model's folder, the predictions, and last the scores, which say that all is there.

    `test` is Trainer's output: `predictions` and `label_ids`.
    """
    from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output

    folder = settings.output / MODEL_FOLDER
    with suppress_transformers_output():
        # An adapted model saves its adapters and head alone, without transformers' configuration.
        for part in (model, tokenizer, model.config):
            part.save_pretrained(folder)
    write_text(folder / FINETUNING_FILE, json.dumps(finetuning(settings, splits, max_tokens), indent=2) + "\n")
    write_predictions(settings.output / PREDICTIONS_FILE, splits, test.predictions, test.label_ids)
    write_text(settings.output / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    shutil.rmtree(settings.output / CHECKPOINTS_FOLDER, ignore_errors=True)


def finetuning(settings: FinetuneSettings, splits: Splits, max_tokens: int) -> dict[str, Any]:
    """What predicting needs beside the model and its tokenizer."""
    task = splits.task
    return {
        "task": task.name,
        "labels": list(task.labels),
        "overlapping": settings.overlapping,
        "max_tokens": max_tokens,
        "long": settings.long,
        "target_mean": list(task.mean),
        "target_std": list(task.std),
    }


def write_predictions(path: Path, splits: Splits, answers: NDArray, targets: NDArray) -> None:
    """One line a test row, in the table's order: sequence, label columns, the task's columns of predictions."""
    table, task = splits.test, splits.task
    predictions = task.predictions(answers, targets)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["sequence", *table.columns, *task.prediction_columns()])
        for sequence, fields, predicted in zip(table.sequences, table.fields, predictions, strict=True):
            cells = predicted if not task.per_base else [predicted[0][: len(sequence)]]
            writer.writerow([sequence, *fields, *cells])


def scores_table(scores: dict[str, Any]) -> str:
    """The scores as a few lines of text: one row a split, one column a metric."""
    metrics = scores["metrics"]
    names = list(metrics["test"])
    lines = [f"{scores['data_set']}, {scores['weights']} weights, seed {scores['seed']}, step {scores['best_step']}"]
    lines.append("split    rows  " + "  ".join(f"{name:>8}" for name in names))
    for split, values in metrics.items():
        cells = "  ".join(cell(values[name]).rjust(max(8, len(name))) for name in names)
        lines.append(f"{split:<5}{scores['splits'][split]['rows']:>8}  {cells}")
    return "\n".join(lines)


def cell(value: float | None) -> str:
    """A score in a table."""
    return "-" if value is None else f"{value:.4f}"
