"""Check, clear and write the output folder of fine-tuning."""

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
    CONFIG_ENTRY,
    FINETUNING_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TENSORBOARD_FOLDER,
    FinetuneSettings,
    flag,
)
from dnabert_rm.finetune.table_splits import Splits
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import writable_parent, write_text


def check_output(settings: FinetuneSettings) -> None:
    """Raise `ConfigError` if the output folder can't be written, or if it holds results and `--overwrite` is not set.

    Also raise `ConfigError` if the results would replace the model or a table that the run reads.
    """
    output = settings.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; choose a folder")
    writable_parent(output, f"--output {output}")
    check_inputs(settings)
    existing = [name for name in (SCORES_FILE, MODEL_FOLDER, PREDICTIONS_FILE) if (output / name).exists()]
    if existing and not settings.overwrite:
        raise ConfigError(
            f"--output {output}: already contains {', '.join(existing)}; choose another folder or pass --overwrite"
        )


def check_inputs(settings: FinetuneSettings) -> None:
    """Raise `ConfigError` if the results would replace the model or a table that the run reads."""
    names = (MODEL_FOLDER, TENSORBOARD_FOLDER, CHECKPOINTS_FOLDER, PREDICTIONS_FILE, SCORES_FILE)
    results = {(settings.output / name).resolve() for name in names}
    for name, path in {"model": settings.model, **settings.tables}.items():
        inside = path.resolve()
        if results & {inside, *inside.parents}:
            raise ConfigError(
                f"--output {settings.output}: the results would replace {flag(name)} {path}; choose another folder"
            )


def clear_output(settings: FinetuneSettings) -> None:
    """Create the output folder. Delete the results of an earlier run from it, but no other files."""
    output = settings.output
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / CHECKPOINTS_FOLDER, ignore_errors=True)
    if (output / SCORES_FILE).exists():
        (output / SCORES_FILE).unlink()
        (output / PREDICTIONS_FILE).unlink(missing_ok=True)
        for folder in (MODEL_FOLDER, TENSORBOARD_FOLDER):
            shutil.rmtree(output / folder, ignore_errors=True)


def describe(settings: FinetuneSettings, splits: Splits, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the `scores.json` entries about the data, the metrics, the settings and the package versions."""
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
    """Write the model's folder and the predictions, then `scores.json` to mark the results as complete.

    `test` is the output of `Trainer.predict` for the test rows, with `predictions` and `label_ids`.
    """
    from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output

    folder = settings.output / MODEL_FOLDER
    record = prediction_settings(settings, splits, max_tokens)
    setattr(model.config, CONFIG_ENTRY, record)
    with suppress_transformers_output():
        # A model with adapters saves only the adapters and the head, so its configuration is saved separately.
        for part in (model, tokenizer, model.config):
            part.save_pretrained(folder)
    write_text(folder / FINETUNING_FILE, json.dumps(record, indent=2) + "\n")
    write_predictions(settings.output / PREDICTIONS_FILE, splits, test.predictions, test.label_ids)
    write_text(settings.output / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    shutil.rmtree(settings.output / CHECKPOINTS_FOLDER, ignore_errors=True)


def prediction_settings(settings: FinetuneSettings, splits: Splits, max_tokens: int) -> dict[str, Any]:
    """Return the settings that `predict` needs, which are saved in both finetuning.json and config.json."""
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


def write_predictions(path: Path, splits: Splits, outputs: NDArray, targets: NDArray) -> None:
    """Write one line per test row, in table order: sequence, label columns, and the prediction columns of the task."""
    table = splits.test
    task = splits.task
    predictions = task.predictions(outputs, targets)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["sequence", *table.columns, *task.prediction_columns()])
        for sequence, fields, predicted in zip(table.sequences, table.fields, predictions, strict=True):
            cells = predicted if not task.per_base else [predicted[0][: len(sequence)]]
            writer.writerow([sequence, *fields, *cells])


def scores_table(scores: dict[str, Any]) -> str:
    """Format the scores of a run as text, with one row per split and one column per metric."""
    metrics = scores["metrics"]
    names = list(metrics["test"])
    lines = [f"{scores['data_set']}, {scores['weights']} weights, seed {scores['seed']}, step {scores['best_step']}"]
    lines.append("split    rows  " + "  ".join(f"{name:>8}" for name in names))
    for split, values in metrics.items():
        cells = "  ".join(format_score(values[name]).rjust(max(8, len(name))) for name in names)
        lines.append(f"{split:<5}{scores['splits'][split]['rows']:>8}  {cells}")
    return "\n".join(lines)


def format_score(value: float | None) -> str:
    """Format a score for a table, or return "-" if it is undefined."""
    return "-" if value is None else f"{value:.4f}"
