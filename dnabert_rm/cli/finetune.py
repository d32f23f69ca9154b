"""`dnabert-rm finetune`: a head of any task on any table of sequences and labels."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import (
    BAD_ROWS,
    CLASS_WEIGHTS,
    LONG,
    PRECISIONS,
    TASKS,
    FinetuneSettings,
)
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import is_first_rank
from dnabert_rm.utils.out_of_memory import explain_out_of_memory

HELP = "fine-tune a head (classes, labels, numbers, a class a base) on a CSV or TSV table"
EXAMPLE = (
    "dnabert-rm finetune --model exported/ --train train.csv --dev dev.csv --test test.csv --output runs/promoters"
)

_DEFAULTS = {field.name: field.default for field in fields(FinetuneSettings)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; each sets the field of `FinetuneSettings` that has its name."""
    files = parser.add_argument_group("files")
    _add(files, "--model", "folder of an exported model", type=Path, metavar="HFDIR", required=True)
    _add(files, "--train", "CSV or TSV table with the columns sequence,label", type=Path, metavar="CSV", required=True)
    _add(files, "--dev", "table that chooses the checkpoint (default: a tenth of --train, held out)", type=Path,
         metavar="CSV")  # fmt: skip
    _add(files, "--test", "table that is scored once, at the end", type=Path, metavar="CSV", required=True)
    _add(files, "--output", "folder for model/, scores.json, predictions.csv, tensorboard/", type=Path, metavar="DIR",
         required=True)  # fmt: skip
    _add(files, "--overwrite", "replace the results that --output holds already", action="store_true")
    _add(files, "--data-set", "name in scores.json (default: the folder of --train)", metavar="NAME")
    task = parser.add_argument_group("task")
    _add(task, "--task", "the head's answer: a class, any number of labels, numbers, a class for each base",
         choices=TASKS)  # fmt: skip
    _add(task, "--label-columns", "columns of the labels: several 0/1 columns for multi-label, numbers for "
         "regression", type=_names, metavar="A,B,C")  # fmt: skip
    _add(task, "--bad-rows", "what a row does that can't be used", choices=BAD_ROWS)
    _add(task, "--best-metric", "metric on dev that chooses the checkpoint (default: the task's)", metavar="NAME")
    _add(task, "--class-weights", "weigh classes by the inverse of their share", choices=CLASS_WEIGHTS)
    training = parser.add_argument_group("training")
    _add(training, "--epochs", "passes over the training rows", type=int)
    _add(training, "--max-steps", "stop after so many steps, whatever --epochs says", type=int)
    _add(training, "--learning-rate", "peak of linear warm-up and decay", type=float)
    _add(training, "--batch-size", "rows an optimizer step", type=int)
    _add(training, "--warmup-steps", "steps of warm-up", type=int)
    _add(training, "--weight-decay", "AdamW's", type=float)
    _add(training, "--dropout", "of hidden states and attention", type=float)
    _add(training, "--eval-steps", "steps between evaluations on dev", type=int)
    _add(training, "--seed", "of new weights, order, dropout and held-out rows", type=int)
    _add(training, "--seeds", "several seeds, a folder each: 5 for --seed and the 4 after it, or 1,2,3", type=_seeds,
         metavar="N|A,B,C")  # fmt: skip
    _add(training, "--early-stopping", "stop after so many evaluations without a better one", type=int)
    _add(training, "--precision", "arithmetic", choices=PRECISIONS)
    model = parser.add_argument_group("model")
    _add(model, "--max-tokens", "tokens the model is given at once (default: its positions)", type=int)
    _add(model, "--long", "longer sequences keep their middle, or are averaged over overlapping windows", choices=LONG)
    model.add_argument("--non-overlapping", dest="overlapping", action="store_false", help="tokens with stride k")
    _add(model, "--lora", "train LoRA adapters of this rank in place of the encoder's weights", type=int, metavar="R")
    _add(model, "--freeze-encoder", "train the head alone, a probe", action="store_true")
    _add(model, "--from-scratch", "random weights in the same architecture, as a control", action="store_true")


def _add(group: Any, flag: str, text: str, **options: Any) -> None:
    default = _DEFAULTS.get(flag[2:].replace("-", "_"))
    if "required" not in options and "action" not in options:
        options["default"] = default
        shown = ",".join(default) if isinstance(default, tuple) else default
        text += "" if default is None else f" (default: {shown})"
        options.setdefault("metavar", None if "choices" in options else "N")
    group.add_argument(flag, help=text, **options)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _seeds(text: str) -> int | tuple[int, ...]:
    """How many seeds, or which."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor a list like 1,2,3") from None
    if len(numbers) > 1:
        return numbers
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text} seeds: one or more are needed")
    return numbers[0]


def run(args: argparse.Namespace) -> None:
    """Fine-tune, and print the scores on standard output."""
    given = {name: getattr(args, name) for name in _DEFAULTS}
    if isinstance(args.seeds, int):
        given["seeds"] = range(args.seed, args.seed + args.seeds)
    settings = FinetuneSettings(**given)
    suppress_library_output()
    from dnabert_rm.finetune import finetune_model as finetune
    from dnabert_rm.finetune import multiple_seeds as seeds

    # Standard output is for the result alone, whatever the libraries print on the way.
    less = "lower --batch-size, or --max-tokens, which cuts long sequences"
    with contextlib.redirect_stdout(sys.stderr), explain_out_of_memory(less):
        try:
            scores = finetune.finetune(settings) if settings.seeds is None else seeds.finetune_seeds(settings)
        finally:
            if "torch" in sys.modules:  # the first mistakes are told before it is imported
                from dnabert_rm.finetune.hf_trainer import leave_ranks

                leave_ranks()
    if is_first_rank():
        print(finetune.scores_table(scores) if settings.seeds is None else seeds.seeds_table(scores))
