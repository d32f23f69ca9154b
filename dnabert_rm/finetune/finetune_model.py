"""Fine-tune a model with one seed, and write the model, its scores and its predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.finetune.fingerprints import fingerprints_of
from dnabert_rm.finetune.output_folder import (
    check_output,
    clear_output,
    describe,
    scores_table,
    write_results,
)
from dnabert_rm.finetune.table_splits import Splits, notice, read_splits, shared_rows, warn_of_shared_rows
from dnabert_rm.finetune.trained_tokens import stride_warning
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.utils.errors import ConfigError, DataError, is_first_rank

BASE_RATE, BASE_WIDTH, LARGEST_RATE = 3e-5, 768, 1e-3
MIN_JUDGED_ROWS = 20

__all__ = ["FinetuneSettings", "finetune", "scores_table"]


def finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune a model, choose the checkpoint with the best dev metric, and score the test table once.

    Files in `settings.output`:

    - `model/`: the fine-tuned model for `AutoModelForSequenceClassification`, or `AutoModelForTokenClassification` for
      per-base tasks. With LoRA, `PeftModel.from_pretrained` loads it on the pretrained model.
    - `predictions.csv` for the test table, and `tensorboard/`.
    - `scores.json`: the returned scores, written last.

    On a CPU, the same settings give the same scores. Under a launcher every rank must call this, and rank 0 writes.
    Raises `DataError` for errors in the tables, `CheckpointError` in the model, and `ConfigError` in the settings.
    """
    check_output(settings)
    check_model_folder(settings.model)
    splits = read_splits(settings)
    fingerprints = fingerprints_of(settings)
    best_metric = chosen_metric(settings, splits)
    warn_of_shared_rows(splits)
    # Importing torch and transformers takes seconds, so errors in the tables are reported first.
    from dnabert_rm.finetune import hf_trainer
    from dnabert_rm.finetune import pretrained_encoder as encoder

    config = encoder.load_config(settings.model)
    tokenizer = encoder.load_tokenizer(settings.model, config, settings.overlapping)
    max_tokens = allowed_tokens(settings, config)
    tokenizer.model_max_length = max_tokens
    model, new_tensors = prepare_model(settings, splits, config)
    rows = tokenize_splits(settings, splits, tokenizer, max_tokens)
    rate = settings.learning_rate or default_learning_rate(config.hidden_size)
    report_start(settings, splits, rows, new_tensors)
    chosen = "" if settings.learning_rate else f", the default for a model of width {config.hidden_size}"
    notice(f"learning rate: {rate:.3g}{chosen}")
    with encoder.suppress_transformers_output():
        args = hf_trainer.training_arguments(settings, best_metric, rate)
        hf_trainer.wait_for_ranks()  # every rank has checked the folder before the first rank changes it
        if is_first_rank():
            clear_output(settings)
        hf_trainer.wait_for_ranks()
        trainer = hf_trainer.make_trainer(model, splits.task, rows["train"], rows["dev"], settings, args)
        trained = trainer.train()
        outputs: dict[str, Any] = {name: trainer.predict(rows[name]) for name in ("dev", "test")}
        metrics = {name: trainer.scores(output) for name, output in outputs.items()}
        scores = (
            describe(settings, splits, metrics)
            | fingerprints
            | count_changed_rows(settings, splits, rows)
            | training_summary(trainer, trained, best_metric)
        )
        warn_at_chance(scores, best_metric, rate)
        if is_first_rank():
            write_results(settings, splits, max_tokens, trainer.model, tokenizer, outputs["test"], scores)
        hf_trainer.wait_for_ranks()
    return scores


def chosen_metric(settings: FinetuneSettings, splits: Splits) -> str:
    """Return the name of the metric that chooses the checkpoint: `--best-metric`, or the task's default.

    Raises `ConfigError` if the task has no metric of this name. Raises `ConfigError` also if the metric can't compare
    models, because it is undefined on the dev rows, or is the same whatever a model predicts. Warns if a label has the
    same value in every dev row.
    """
    task = splits.task
    metric = settings.best_metric or task.best_metric
    rows = splits.targets(splits.dev)
    targets = np.concatenate(rows) if task.per_base else np.stack(rows)
    right, wrong = (task.metrics(targets, outputs) for outputs in task.right_and_wrong_outputs(targets))
    if metric not in right:
        raise ConfigError(
            f"--best-metric {metric}: not a metric of --task {task.name}; choose one of {', '.join(right)}"
        )
    constant = task.constant_labels(targets)
    dev = splits.dev.path if settings.dev else f"the rows held out of {splits.dev.path}"
    usable = [name for name, score in right.items() if score is not None and score != wrong[name]]
    if metric not in usable:
        fault = "undefined" if right[metric] is None else "the same for every model"
        raise ConfigError(
            f"--best-metric {metric}: {fault} on {dev}, where all labels are the same ({constant}); pass one of"
            f" {', '.join(usable)}, or a --dev table with different labels"
        )
    if constant:
        notice(
            f"warning: {dev}: all rows have {constant}, so {metric} is unreliable for choosing the checkpoint; pass a"
            " --dev table with different labels"
        )
    return metric


def default_learning_rate(hidden_size: int) -> float:
    """Return the peak learning rate for a model of this width, in the absence of --learning-rate.

    3e-5 is the rate of DNABERT-2's scripts, for width 768. Narrower models need more. docs/finetuning.md
    has the rates of the presets.
    """
    return min(LARGEST_RATE, BASE_RATE * max(1.0, (BASE_WIDTH / hidden_size) ** 2))


def warn_at_chance(scores: dict[str, Any], best_metric: str, rate: float) -> None:
    """Print a warning if the chosen checkpoint is no better on dev than chance, with what to change.

    Chance is an R² that is not above 0, or a Matthews correlation below two standard errors. For n rows of K classes
    and predictions that are independent of them, the standard error is 1 / √(n (K - 1)). Other metrics, fewer than
    `MIN_JUDGED_ROWS` rows, and classes of bases are not judged.
    """
    found, num_rows = scores["metrics"]["dev"].get(best_metric), scores["splits"]["dev"]["rows"]
    limits = {"r2": 0.0}
    if scores["task"] == "classes":
        limits["mcc"] = 2 / math.sqrt(num_rows * (len(scores["classes"]) - 1))
    limit = limits.get(best_metric)
    if limit is None or found is None or found > limit or num_rows < MIN_JUDGED_ROWS:
        return
    other_rate = f"--learning-rate {3 * rate:.2g}" if rate < LARGEST_RATE else f"--learning-rate {rate / 3:.2g}"
    notice(
        f"warning: dev {best_metric} {found:.3f} is not above chance ({limit:.3f} with {num_rows} rows); try "
        f"{other_rate}, more --epochs, or a model that was pretrained longer (`dnabert-rm check-run` on its run folder)"
    )


def allowed_tokens(settings: FinetuneSettings, config: Any) -> int:
    """Return the maximum input length in tokens: `max_tokens` if it is set, else the model's number of positions."""
    positions = config.max_position_embeddings
    if settings.max_tokens is not None and settings.max_tokens > positions:
        raise ConfigError(
            f"--max-tokens {settings.max_tokens}: the model has {positions} positions; pass {positions} or less"
        )
    return settings.max_tokens or positions


def prepare_model(settings: FinetuneSettings, splits: Splits, config: Any) -> tuple[Any, list[str]]:
    """Load the model and select its trainable weights.

    Return the model and the names of its newly initialized tensors.
    """
    from dnabert_rm.finetune import pretrained_encoder as encoder
    from dnabert_rm.finetune.lora import add_adapters

    model, new_tensors = encoder.load_model(
        settings.model, config, splits.task, settings.dropout, settings.seed, settings.from_scratch
    )
    if settings.freeze_encoder:
        encoder.freeze_encoder(model)
    if settings.lora:
        return add_adapters(model, settings.lora, settings.dropout, settings.model), new_tensors
    return model, new_tensors


def tokenize_splits(settings: FinetuneSettings, splits: Splits, tokenizer: Any, max_tokens: int) -> dict[str, Any]:
    """Return the `TokenRows` of each split. Raise `DataError` if a table has only sequences shorter than one k-mer."""
    from dnabert_rm.finetune.token_rows import token_rows

    rows_by_split = {}
    for name, table in splits.items():
        rows = token_rows(
            tokenizer,
            table.sequences,
            splits.targets(table),
            max_tokens,
            long=settings.long,
            per_base=splits.task.per_base,
        )
        if rows.num_empty == len(table):
            token = f"{tokenizer.k}-mer" if hasattr(tokenizer, "k") else "token"
            raise DataError(f"{table.path}: every sequence is shorter than one {token}; provide longer sequences")
        rows_by_split[name] = rows
    return rows_by_split


def report_start(settings: FinetuneSettings, splits: Splits, rows_by_split: dict[str, Any], new: list[str]) -> None:
    """Print notices about the model, the data, and rows that are too long or too short.

    `new` holds the names of the newly initialized tensors.
    """
    if settings.from_scratch:
        notice(f"model: architecture of {settings.model} with random weights")
    else:
        notice(f"model: {settings.model}, with {len(new)} newly initialized tensors ({', '.join(new)})")
        if warning := stride_warning(settings.overlapping, settings.model):
            notice(warning)
    sizes = ", ".join(f"{name} {len(table)}" for name, table in splits.items())
    notice(f"data: {settings.name}: rows {sizes}; {splits.task.describe()}")
    handling = "only their middle is used" if settings.long == "middle" else "overlapping windows are averaged"
    for name, rows in rows_by_split.items():
        if rows.num_long:
            notice(f"note: {rows.num_long} {name} rows have more tokens than the maximum input length; {handling}")
        if rows.num_empty:
            notice(f"warning: {rows.num_empty} {name} rows are shorter than one k-mer; the model can't see their bases")


def count_changed_rows(settings: FinetuneSettings, splits: Splits, rows_by_split: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of shared, long and dropped rows, as `scores.json` entries.

    Shared rows are dev and test rows whose sequence is also in train. Long rows have more tokens than the maximum
    input length. Dropped rows are unusable rows of the table files.
    """
    num_long = {name: rows.num_long for name, rows in rows_by_split.items()}
    none = dict.fromkeys(num_long, 0)
    return {
        "rows_shared_with_train": shared_rows(splits),
        "rows_cut_to_their_middle": num_long if settings.long == "middle" else none,
        "rows_cut_into_windows": num_long if settings.long == "window" else none,
        "rows_left_out": splits.dropped(),
    }


def training_summary(trainer: Any, trained: Any, best_metric: str) -> dict[str, Any]:
    """Return the `scores.json` entries about training. `trained` is the return value of `Trainer.train`."""
    return {
        "best_metric": best_metric,
        "learning_rate": trainer.args.learning_rate,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "trained_parameters": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "train_seconds": round(trained.metrics["train_runtime"], 3),
        "train_rows_per_second": round(trained.metrics["train_samples_per_second"], 3),
    }
