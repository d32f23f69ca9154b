"""`dnabert-rm check`: all mistakes of a run's configuration at once, in under a second, without training."""

from __future__ import annotations

import argparse

from dnabert_rm.cli.run_flags import add_run_flags, run_config

HELP = "check a pretraining configuration and its data without training"
EXAMPLE = "dnabert-rm check --preset tiny --data prepared --output runs/first --steps 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pretrain`."""
    add_run_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Check, and print what the run would be."""
    from dnabert_rm.train.preflight import check_run

    print("\n".join(check_run(run_config(args))))
