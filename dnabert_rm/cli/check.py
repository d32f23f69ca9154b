"""`dnabert-rm check`: all mistakes of a run's configuration at once, in under a second, without training."""

from __future__ import annotations

import argparse

from dnabert_rm.cli.run_flags import add_run_flags, run_config
from dnabert_rm.utils.errors import ConfigError

HELP = "check a pretraining configuration and its data without training"
EXAMPLE = "dnabert-rm check --preset tiny --data prepared --output runs/first --ranks 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pretrain`, and the number of ranks."""
    add_run_flags(parser, "--data DIR --output RUN [--ranks N]")
    parser.add_argument("--ranks", type=int, default=1, metavar="INT", help="ranks (GPUs) of the run (default: 1)")


def run(args: argparse.Namespace) -> None:
    """Check, and print what the run would be."""
    from dnabert_rm.train.preflight import check_run

    if args.ranks < 1:
        raise ConfigError(f"--ranks {args.ranks}: must be at least 1")
    print("\n".join(check_run(run_config(args), args.ranks)))
