"""Fine-tuning of a classifier: tables in; model, scores and predictions out."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import __version__
from dnabert_rm.downstream import tables
from dnabert_rm.downstream.settings import (
    CHECKPOINTS_FOLDER,
    DEV_ONE_IN,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TENSORBOARD_FOLDER,
    FinetuneSettings,
)
from dnabert_rm.errors import ConfigError
from dnabert_rm.shards import write_atomically

__all__ = ["FinetuneSettings", "finetune", "scores_table"]


@dataclass(frozen=True)
class Splits:
    """The three tables of a data set and the names of its classes."""

    train: tables.LabelledTable
    dev: tables.LabelledTable
    test: tables.LabelledTable
    classes: list[str]

    def items(self) -> list[tuple[str, tables.LabelledTable]]:
        """The tables by name."""
        return [("train", self.train), ("dev", self.dev), ("test", self.test)]

    def labels(self, table: tables.LabelledTable) -> NDArray[np.int64]:
        """The class number of each row."""
        return tables.class_numbers(table, self.classes, self.train.path)


def finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune one classifier, choose its checkpoint on dev by MCC, score test once.

    Writes `model/` (loads with `AutoModelForSequenceClassification`), `predictions.csv`,
    `tensorboard/` and last of all `scores.json` into `settings.output`; returns what that holds.
    On a CPU the same settings give the same scores.
    Raises `DataError` for the tables, `CheckpointError` for the model, `ConfigError` for the settings.
    """
    check_output(settings)
    splits = read_splits(settings)
    shared = shared_rows(splits)
    # torch and transformers take seconds to import: mistakes in the tables are told before.
    from dnabert_rm.downstream import heads, training

    config = heads.load_config(settings.model)
    tokenizer = heads.load_tokenizer(settings.model, config, settings.overlapping)
    tokenizer.model_max_length = max_tokens = allowed_tokens(settings, config)
    model, new = heads.load_classifier(
        settings.model, config, splits.classes, settings.dropout, settings.seed, settings.from_scratch
    )
    rows = {
        name: training.token_rows(tokenizer, table.sequences, splits.labels(table), max_tokens)
        for name, table in splits.items()
    }
    tell_start(settings, splits, rows, new)
    clear_output(settings)
    with heads.quiet_transformers():
        trainer = training.make_trainer(model, rows["train"], rows["dev"], settings)
        trained = trainer.train()
        outputs: dict[str, Any] = {name: trainer.predict(rows[name]) for name in ("dev", "test")}
    metrics = {name: training.metrics_of(output) for name, output in outputs.items()}
    scores = describe(settings, splits, metrics) | {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "rows_shared_with_train": shared,
        "rows_cut_to_their_middle": {name: part.num_cut for name, part in rows.items()},
        "train_seconds": round(trained.metrics["train_runtime"], 3),
        "train_rows_per_second": round(trained.metrics["train_samples_per_second"], 3),
    }
    if trainer.is_world_process_zero():
        write_results(settings, splits, trainer.model, tokenizer, outputs["test"].predictions, scores)
    return scores


# ---- before training


def check_output(settings: FinetuneSettings) -> None:
    """`ConfigError` where results, or the pretrained model itself, would be written over."""
    output = settings.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; name a folder")
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
        for folder in (MODEL_FOLDER, TENSORBOARD_FOLDER):
            shutil.rmtree(output / folder, ignore_errors=True)


def read_splits(settings: FinetuneSettings) -> Splits:
    """Read and check the tables; `DataError` for the first fault in any of them."""
    train = tables.read_labelled(settings.train)
    classes = tables.class_names(train)
    if settings.dev is None:
        train, dev = tables.hold_out(train, DEV_ONE_IN, settings.seed)
        notice(f"note: no --dev: {len(dev)} of {len(train) + len(dev)} rows of {settings.train} choose the checkpoint")
    else:
        dev = tables.read_labelled(settings.dev)
    splits = Splits(train, dev, tables.read_labelled(settings.test), classes)
    for _, table in splits.items():
        splits.labels(table)
    return splits


def shared_rows(splits: Splits) -> dict[str, int]:
    """How many rows of dev and test stand in train too; warns, since they flatter the scores."""
    shared = {name: tables.count_shared(table, splits.train) for name, table in splits.items() if name != "train"}
    for name, count in shared.items():
        if count:
            notice(
                f"warning: {count} of {len(getattr(splits, name))} {name} rows have a sequence that stands in train"
                f" as well: the {name} scores are better than they should be"
            )
    return shared


def allowed_tokens(settings: FinetuneSettings, config: Any) -> int:
    """Tokens a row may have: `max_tokens`, or all of the model's positions."""
    positions = config.max_position_embeddings
    if settings.max_tokens is not None and settings.max_tokens > positions:
        raise ConfigError(f"--max-tokens {settings.max_tokens}: the model has {positions} positions; pass at most that")
    return settings.max_tokens or positions


def tell_start(settings: FinetuneSettings, splits: Splits, rows: dict[str, Any], new: list[str]) -> None:
    """Say in a few lines what is about to be trained, and what was done to the rows."""
    if settings.from_scratch:
        notice(f"model: {settings.model}'s architecture with random weights")
    else:
        notice(f"model: {settings.model}, with {len(new)} new tensors ({', '.join(new)})")
    sizes = ", ".join(f"{name} {len(table)}" for name, table in splits.items())
    notice(f"data: {settings.name}: rows {sizes}; classes {', '.join(splits.classes)}")
    for name, part in rows.items():
        if part.num_cut:
            notice(f"note: {part.num_cut} {name} rows have more tokens than the model takes; their middle is kept")
        if part.num_empty:
            notice(f"warning: {part.num_empty} {name} rows are shorter than one k-mer: the model sees nothing of them")


def notice(text: str) -> None:
    """A line on standard error, from one rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


# ---- after training


def describe(settings: FinetuneSettings, splits: Splits, metrics: dict[str, Any]) -> dict[str, Any]:
    """What `scores.json` says of the data, the scores, and how to get them again."""
    return {
        "data_set": settings.name,
        "classes": splits.classes,
        "splits": {name: {"file": str(table.path), "rows": len(table)} for name, table in splits.items()},
        "weights": "random" if settings.from_scratch else "pretrained",
        "metrics": metrics,
        "seed": settings.seed,
        "settings": settings.to_json(),
        "versions": {"dnabert_rm": __version__, "python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "scikit-learn", "numpy")},
    }


def write_results(
    settings: FinetuneSettings, splits: Splits, model: Any, tokenizer: Any, logits: NDArray, scores: dict[str, Any]
) -> None:
    """Write the model's folder, the predictions, and last the scores, which say that all is there."""
    from dnabert_rm.downstream.heads import quiet_transformers

    with quiet_transformers():
        for part in (model, tokenizer):
            part.save_pretrained(settings.output / MODEL_FOLDER)
    write_predictions(settings.output / PREDICTIONS_FILE, splits, logits)
    write_atomically(settings.output / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    shutil.rmtree(settings.output / CHECKPOINTS_FOLDER, ignore_errors=True)


def write_predictions(path: Path, splits: Splits, logits: NDArray) -> None:
    """One line a test row, in the table's order: sequence, label, prediction, a probability for each class."""
    from dnabert_rm.downstream.metrics import probabilities

    chances = probabilities(logits)
    predicted = [splits.classes[number] for number in np.asarray(logits).argmax(axis=-1)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["sequence", "label", "prediction", *(f"p_{name}" for name in splits.classes)])
        for *row, chance in zip(splits.test.sequences, splits.test.labels, predicted, chances, strict=True):
            writer.writerow([*row, *(f"{value:.6f}" for value in chance)])


def scores_table(scores: dict[str, Any]) -> str:
    """The scores as a few lines of text: one row a split, one column a metric."""
    metrics = scores["metrics"]
    names = list(metrics["test"])
    lines = [f"{scores['data_set']}, {scores['weights']} weights, seed {scores['seed']}, step {scores['best_step']}"]
    lines.append("split    rows  " + "  ".join(f"{name:>8}" for name in names))
    for split, values in metrics.items():
        cells = "  ".join("       -" if values[name] is None else f"{values[name]:8.4f}" for name in names)
        lines.append(f"{split:<5}{scores['splits'][split]['rows']:>8}  {cells}")
    return "\n".join(lines)
