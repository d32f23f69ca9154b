"""Fine-tuning of one head with one seed: tables in; model, scores and predictions out."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.finetune.output_folder import (
    check_output,
    clear_output,
    describe,
    scores_table,
    write_results,
)
from dnabert_rm.finetune.table_splits import Splits, notice, read_splits, shared_rows, warn_of_shared_rows
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.utils.errors import ConfigError, DataError, is_first_rank

__all__ = ["FinetuneSettings", "finetune", "scores_table"]


def finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune one head, choose its checkpoint on dev by the task's metric, score test once.

    Writes `model/` (loads with `AutoModelForSequenceClassification`, or `AutoModelForTokenClassification` for a class
    a base, or `PeftModel.from_pretrained` on the export for LoRA), `predictions.csv`, `tensorboard/` and last of all
    `scores.json` into `settings.output`; returns what that holds. On a CPU the same settings give the same scores.
    Every rank that a launcher started calls this; the first alone writes.
    Raises `DataError` for the tables, `CheckpointError` for the model, `ConfigError` for the settings.
    """
    check_output(settings)
    check_model_folder(settings.model)
    splits = read_splits(settings)
    best_metric = chosen_metric(settings, splits)
    warn_of_shared_rows(splits)
    # torch and transformers take seconds to import: mistakes in the tables are told before.
    from dnabert_rm.finetune import hf_trainer as training
    from dnabert_rm.finetune import pretrained_encoder as heads

    config = heads.load_config(settings.model)
    tokenizer = heads.load_tokenizer(settings.model, config, settings.overlapping)
    tokenizer.model_max_length = max_tokens = allowed_tokens(settings, config)
    model, new = prepared_model(settings, splits, config)
    parts = tokenized(settings, splits, tokenizer, max_tokens)
    tell_start(settings, splits, parts, new)
    with heads.suppress_transformers_output():
        args = training.training_arguments(settings, best_metric)
        training.wait_for_ranks()  # each has looked at the folder before the first rank changes it
        if is_first_rank():
            clear_output(settings)
        training.wait_for_ranks()
        trainer = training.make_trainer(model, splits.task, parts["train"], parts["dev"], settings, args)
        trained = trainer.train()
        outputs: dict[str, Any] = {name: trainer.predict(parts[name]) for name in ("dev", "test")}
        metrics = {name: trainer.scores(output) for name, output in outputs.items()}
        scores = (
            describe(settings, splits, metrics)
            | counts(settings, splits, parts)
            | {
                "best_metric": best_metric,
                "steps": trainer.state.global_step,
                "best_step": trainer.state.best_global_step,
                "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
                "train_seconds": round(trained.metrics["train_runtime"], 3),
                "train_rows_per_second": round(trained.metrics["train_samples_per_second"], 3),
            }
        )
        if is_first_rank():
            write_results(settings, splits, max_tokens, trainer.model, tokenizer, outputs["test"], scores)
        training.wait_for_ranks()
    return scores


def chosen_metric(settings: FinetuneSettings, splits: Splits) -> str:
    """The metric that chooses the checkpoint; `ConfigError` where dev can't be scored by it."""
    task, wanted = splits.task, settings.best_metric or splits.task.best_metric
    targets = splits.targets(splits.dev)
    if task.per_base:
        flat = np.concatenate(targets)
        scores = task.metrics(flat, np.zeros_like(flat))
    else:
        scores = task.metrics(np.stack(targets), np.zeros((len(targets), len(task.labels))))
    if wanted not in scores:
        raise ConfigError(f"--best-metric {wanted}: --task {task.name} has {', '.join(scores)}")
    if scores[wanted] is None:
        others = ", ".join(name for name, score in scores.items() if score is not None)
        raise ConfigError(
            f"--best-metric {wanted}: is undefined on {splits.dev.path}, where all labels are alike;"
            f" pass one of {others}"
        )
    return wanted


def prepared_model(settings: FinetuneSettings, splits: Splits, config: Any) -> tuple[Any, list[str]]:
    """The model with what of it shall learn, and the names of its new tensors."""
    from dnabert_rm.finetune import lora as adapters
    from dnabert_rm.finetune import pretrained_encoder as heads

    model, new = heads.load_model(
        settings.model, config, splits.task, settings.dropout, settings.seed, settings.from_scratch
    )
    if settings.freeze_encoder:
        heads.freeze_encoder(model)
    if settings.lora:
        return adapters.with_adapters(model, settings.lora, settings.dropout, settings.model), new
    return model, new


def tokenized(settings: FinetuneSettings, splits: Splits, tokenizer: Any, max_tokens: int) -> dict[str, Any]:
    """Each table's `rows.TokenRows`; `DataError` where a table has no sequence of a k-mer's length."""
    from dnabert_rm.finetune import token_rows as rows

    parts, per_base = {}, splits.task.per_base
    for name, table in splits.items():
        targets = splits.targets(table)
        parts[name] = rows.token_rows(
            tokenizer, table.sequences, targets, max_tokens, long=settings.long, per_base=per_base
        )
        if parts[name].num_empty == len(table):
            raise DataError(f"{table.path}: every sequence is shorter than one {tokenizer.k}-mer; give longer ones")
    return parts


def counts(settings: FinetuneSettings, splits: Splits, parts: dict[str, Any]) -> dict[str, Any]:
    """What `scores.json` says of the rows that are not as their table has them, or stand in two tables."""
    num_long = {name: part.num_long for name, part in parts.items()}
    none = dict.fromkeys(num_long, 0)
    return {
        "rows_shared_with_train": shared_rows(splits),
        "rows_cut_to_their_middle": num_long if settings.long == "middle" else none,
        "rows_cut_into_windows": num_long if settings.long == "window" else none,
        "rows_left_out": splits.dropped(),
    }


def allowed_tokens(settings: FinetuneSettings, config: Any) -> int:
    """Tokens the model is given at once: `max_tokens`, or all of its positions."""
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
    notice(f"data: {settings.name}: rows {sizes}; {splits.task.describe()}")
    what = "their middle is kept" if settings.long == "middle" else "windows of them are averaged"
    for name, part in rows.items():
        if part.num_long:
            notice(f"note: {part.num_long} {name} rows have more tokens than the model takes; {what}")
        if part.num_empty:
            notice(f"warning: {part.num_empty} {name} rows are shorter than one k-mer: the model sees nothing of them")
