"""Command `dnabert-rm pretrain`: run one rank of a pretraining run, or start all ranks of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from dnabert_rm.cli.run_flags import RunCommand, RunFlags
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.distributed.launchers import rank_info
from dnabert_rm.train.preflight import check_run
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import ConfigError, UserError


@dataclass(frozen=True)
class PretrainSettings(Settings):
    """Flags of `pretrain`, in addition to the flags of a run configuration."""

    check: bool = False
    """Check the configuration and the data, then exit."""
    gpus: int | None = setting(None, metavar="N", minimum=1)
    """Start N ranks on this machine, one for each GPU, or N processes without GPUs. `launch_scripts/pretrain.sh` and
    other launchers start the ranks themselves."""
    local_rank: int | None = setting(None, flag="--local_rank", hidden=True)
    """This process's rank on its node, as DeepSpeed's launcher passes it."""


def run(settings: PretrainSettings, flags: RunFlags) -> None:
    """Train on this rank. Stop signals are handled from the start, before slow imports."""
    if settings.check:
        check_run(flags.config(), settings.gpus or 1)
        return
    if settings.gpus:
        check_run(flags.config(), settings.gpus)
        _start_ranks(settings.gpus, flags.words)
    if flags.unknown:  # all ranks have the same command line, so each can end at once
        flags.config()
    stop = StopRequests()
    stop.listen()
    if settings.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(settings.local_rank))
    num_ranks = rank_info(os.environ).world_size
    problem = None
    # Check before importing torch, which takes seconds. With several ranks, `abort_all_ranks` reports the error.
    try:
        config = flags.config()
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
        # On a closed pipe (`… | head`) other commands exit with 0. Here 0 would mean that the run is complete.
        raise SystemExit(1) from None


def _start_ranks(num_ranks: int, words: Sequence[str]) -> NoReturn:
    """Run the same command on all ranks, and end with their exit code."""
    if "RANK" in os.environ or rank_info(os.environ).world_size > 1:
        raise ConfigError("--gpus: another launcher has started this rank; omit --gpus")
    from dnabert_rm.train.local_launcher import launch_ranks

    raise SystemExit(launch_ranks(num_ranks, list(_without_gpus(words))))


def _without_gpus(words: Sequence[str]) -> Iterator[str]:
    skip = False
    for word in words:
        if not skip and not word.startswith("--gpus"):
            yield word
        skip = word == "--gpus"


COMMAND = RunCommand(
    name="pretrain",
    help="pretrain on prepared folders (start it with `deepspeed launch_scripts/pretrain.sh`)",
    example="deepspeed launch_scripts/pretrain.sh --preset tiny --data prepared --output runs/first --steps 200",
    settings=PretrainSettings,
    run=run,
    usage="--data DIR --output RUN",
)
