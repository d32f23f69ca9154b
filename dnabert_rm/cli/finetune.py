"""`dnabert-rm finetune`: a classifier on any table of sequences and labels."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dnabert_rm.downstream.settings import PRECISIONS, FinetuneSettings
from dnabert_rm.quiet import quiet_third_parties

HELP = "fine-tune a classification head on a CSV or TSV table of sequences and labels"
EXAMPLE = (
    "dnabert-rm finetune --model exported/ --train train.csv --dev dev.csv --test test.csv --output runs/promoters"
)

_DEFAULTS = {field.name: field.default for field in fields(FinetuneSettings)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; each sets the field of `FinetuneSettings` that has its name."""
    files = parser.add_argument_group("files")
    _add(files, "--model", "folder of an exported model", type=Path, metavar="HFDIR", required=True)
    _add(files, "--train", "table with the columns sequence,label", type=Path, metavar="CSV", required=True)
    _add(files, "--dev", "table that chooses the checkpoint (default: a tenth of --train, held out)", type=Path,
         metavar="CSV")  # fmt: skip
    _add(files, "--test", "table that is scored once, at the end", type=Path, metavar="CSV", required=True)
    _add(files, "--output", "folder for model/, scores.json, predictions.csv, tensorboard/", type=Path, metavar="DIR",
         required=True)  # fmt: skip
    _add(files, "--overwrite", "replace the results that --output holds already", action="store_true")
    _add(files, "--data-set", "name in scores.json (default: the folder of --train)", metavar="NAME")
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
    _add(training, "--precision", "arithmetic", choices=PRECISIONS)
    model = parser.add_argument_group("model")
    _add(model, "--max-tokens", "longer sequences keep their middle (default: the model's positions)", type=int)
    model.add_argument("--non-overlapping", dest="overlapping", action="store_false", help="tokens with stride k")
    _add(model, "--from-scratch", "random weights in the same architecture, as a control", action="store_true")


def _add(group: Any, flag: str, text: str, **options: Any) -> None:
    default = _DEFAULTS.get(flag[2:].replace("-", "_"))
    if "required" not in options and "action" not in options:
        options["default"] = default
        text += "" if default is None else " (default: %(default)s)"
        options.setdefault("metavar", None if "choices" in options else "N")
    group.add_argument(flag, help=text, **options)


def run(args: argparse.Namespace) -> None:
    """Fine-tune, and print the scores on standard output."""
    settings = FinetuneSettings(**{name: getattr(args, name) for name in _DEFAULTS})
    quiet_third_parties()
    from dnabert_rm.downstream.finetune import finetune, scores_table

    # Standard output is for the result alone, whatever the libraries print on the way.
    with contextlib.redirect_stdout(sys.stderr):
        scores = finetune(settings)
    print(scores_table(scores))
