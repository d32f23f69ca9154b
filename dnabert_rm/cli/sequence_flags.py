"""Flags that `predict` and `embed` share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import PRECISIONS
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.inference.sequence_input import LONG


def add_sequence_flags(parser: argparse.ArgumentParser, model: str, output: str, default_long: str) -> None:
    """Files, how sequences are cut and batched; the words `model`, `output` and `default_long` go into the help."""
    files = parser.add_argument_group("files")
    files.add_argument("--model", required=True, type=Path, metavar="DIR", help=model)
    files.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="FASTA, or CSV or TSV with the column sequence; gzip too; - for standard input",
    )
    files.add_argument("--output", required=True, type=Path, metavar="FILE", help=output)
    files.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    files.add_argument("--id-column", metavar="NAME", help="names a table's rows (default: id, else the row's number)")
    cut = parser.add_argument_group("long sequences")
    cut.add_argument(
        "--long", choices=LONG, help=f"overlapping windows, joined, or the middle alone (default: {default_long})"
    )
    cut.add_argument("--tile", type=int, metavar="BASES", help="one result for each stretch of so many bases")
    cut.add_argument("--step", type=int, metavar="BASES", help="from one tile's start to the next (default: --tile)")
    cut.add_argument(
        "--max-tokens", type=int, metavar="N", help="tokens at once, specials included (default: the model's)"
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=64, metavar="N", help="windows a batch (default: 64)")
    speed.add_argument("--precision", choices=PRECISIONS, default="fp32", help="arithmetic (default: fp32)")


def settings_of(kind: type[InferenceSettings], args: argparse.Namespace) -> Any:
    """The settings from the flags, each of which has its field's name; `ConfigError` for what can't be."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
