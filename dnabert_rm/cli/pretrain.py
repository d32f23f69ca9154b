"""`dnabert-rm pretrain`: one rank of a pretraining run; `launch_scripts/pretrain.sh` starts them all."""

from __future__ import annotations

import argparse
import os

from dnabert_rm.cli.run_flags import add_run_flags, run_config
from dnabert_rm.distributed.launchers import rank_info
from dnabert_rm.train.preflight import check_run
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import UserError

HELP = "pretrain on prepared folders (start it with `deepspeed launch_scripts/pretrain.sh`)"
EXAMPLE = "deepspeed launch_scripts/pretrain.sh --preset tiny --data prepared --output runs/first --steps 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a run configuration, and the rank that DeepSpeed's launcher passes."""
    add_run_flags(parser, "--data DIR --output RUN")
    parser.add_argument("--check", action="store_true", help="check configuration and data, and end")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Train on this rank. Signals that ask for a stop are taken before anything slow begins."""
    stop = StopRequests()
    if not args.check:
        stop.listen()
    if args.check:
        check_run(run_config(args))
        return
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    num_ranks, problem = rank_info(os.environ).world_size, None
    # Mistakes are told before torch is imported, which takes seconds; among several ranks, once all know of them.
    try:
        config = run_config(args)
        check_run(config, num_ranks)
    except UserError as error:
        if num_ranks == 1:
            raise
        problem = error
    suppress_library_output()
    if problem:
        from dnabert_rm.distributed.consistency import abort_all_ranks

        abort_all_ranks(problem)
    from dnabert_rm.train.trainer import pretrain

    try:
        pretrain(config, stop)
    except BrokenPipeError:
        # Elsewhere a closed pipe (`… | head`) is a quiet end. Here code 0 would say that the last step is done.
        raise SystemExit(1) from None
