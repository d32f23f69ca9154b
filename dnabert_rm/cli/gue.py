"""`dnabert-rm gue`: every GUE data set of a folder, one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import PRECISIONS

HELP = "fine-tune on every GUE data set of a folder, several seeds and arms; one table and picture"
EXAMPLE = (
    "dnabert-rm gue --model exported/ --data GUE/ --output runs/gue --seeds 1,2,3 --arms pretrained,scratch\n\n"
    "A second call goes on where the first ended. Settings of each data set: docs/gue.md."
)
OVERRIDES = {
    "epochs": (int, "passes over the training rows; lifts the table's --max-steps"),
    "max_steps": (int, "optimizer steps, whatever --epochs says"),
    "learning_rate": (float, "peak of linear warm-up and decay"),
    "batch_size": (int, "rows an optimizer step"),
    "warmup_steps": (int, "steps of warm-up"),
    "weight_decay": (float, "AdamW's"),
    "dropout": (float, "of hidden states and attention"),
    "eval_steps": (int, "steps between evaluations on dev"),
    "max_tokens": (int, "longer sequences keep their middle"),
}
"""Settings that one may give for all data sets: type and help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    files = parser.add_argument_group("files")
    files.add_argument("--model", type=Path, metavar="HFDIR", required=True, help="folder of an exported model")
    files.add_argument("--data", type=Path, metavar="GUE_DIR", required=True,
                       help="folder with <family>/<name>/{train,dev,test}.csv")  # fmt: skip
    files.add_argument("--output", type=Path, metavar="DIR", required=True,
                       help="folder for table.csv, table.md, table.png, scores.json and runs/")  # fmt: skip
    files.add_argument("--keep-models", action="store_true", help="keep each run's fine-tuned model (default: scores,"
                       " predictions and logs alone)")  # fmt: skip
    files.add_argument("--overwrite", action="store_true", help="do finished runs again")
    what = parser.add_argument_group("what to run")
    what.add_argument("--sets", type=_words, default=(), metavar="NAMES",
                      help="data sets, e.g. mouse/0,tf or 'EMP/H3*' (default: all that are there)")  # fmt: skip
    what.add_argument("--seeds", type=_numbers, default=(42,), metavar="N,N", help="one run each (default: 42)")
    what.add_argument("--arms", type=_words, default=("pretrained",), metavar="NAMES",
                      help="pretrained, scratch (random weights) or both (default: pretrained)")  # fmt: skip
    what.add_argument("--non-overlapping", dest="overlapping", action="store_false", help="tokens with stride k; an arm"
                      " of its own in the table")  # fmt: skip
    what.add_argument("--stand-in", action="store_true", help="train on dev and test on test where train.csv is"
                      " missing; never a GUE number")  # fmt: skip
    what.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a visible GPU, else 1)")
    what.add_argument("--dry-run", action="store_true", help="list the runs and their settings, start none")
    settings = parser.add_argument_group("settings for all data sets, in place of the table's")
    for name, (kind, text) in OVERRIDES.items():
        settings.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=text)
    settings.add_argument("--precision", choices=PRECISIONS, help="arithmetic")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().rstrip("/") for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between them, e.g. 1,2,3") from None


def run(args: argparse.Namespace) -> int:
    """Run what is not finished yet; prints table.md."""
    from dnabert_rm.evaluate.run_suite import GueOptions, gue
    from dnabert_rm.evaluate.suite_runs import Plan

    given: dict[str, Any] = {name: getattr(args, name) for name in (*OVERRIDES, "precision")}
    overrides = {name: value for name, value in given.items() if value is not None}
    plan = Plan(args.model, args.output, args.seeds, args.arms, args.overlapping, overrides)
    names = ("data", "sets", "stand_in", "jobs", "overwrite", "keep_models", "dry_run")
    return gue(GueOptions(plan, **{name: getattr(args, name) for name in names}))
