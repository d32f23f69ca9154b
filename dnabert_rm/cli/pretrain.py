"""`dnabert-rm pretrain`: one rank of a pretraining run; `launch_scripts/pretrain.sh` starts them all."""

from __future__ import annotations

import argparse
import os

from dnabert_rm.cli.run_flags import add_run_flags, run_config
from dnabert_rm.quiet import quiet_third_parties
from dnabert_rm.train.preflight import check_run

HELP = "pretrain on prepared folders (start it with `deepspeed launch_scripts/pretrain.sh`)"
EXAMPLE = "deepspeed launch_scripts/pretrain.sh --preset tiny --data prepared --output runs/first --steps 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a run configuration, and the rank that DeepSpeed's launcher passes."""
    add_run_flags(parser)
    parser.add_argument("--check", action="store_true", help="check configuration and data, and end")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Train on this rank."""
    config = run_config(args)
    # Mistakes are told before torch is imported, which takes seconds.
    check_run(config)
    if args.check:
        return
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    quiet_third_parties()
    from dnabert_rm.train.pretrain import pretrain

    pretrain(config)
