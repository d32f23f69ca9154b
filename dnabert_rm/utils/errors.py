"""The errors that a user can mend: one root, one line each, exit code 2."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Where launchers say which of several ranks a process is, the innermost launcher first."""
EXIT_HANG = 70
"""A wait took longer than `train.hang_timeout_seconds`; the stacks lie in the run folder."""
EXIT_RANK_FAILURE = 71
"""Another rank of the run is gone."""
EXIT_STOPPED = 75
"""A run was asked to stop and has saved (EX_TEMPFAIL of sysexits.h: try again)."""


class UserError(Exception):
    """A mistake that the user can mend; its text is one line that names what to change."""

    on_one_rank = False
    """Whether it can happen on one rank alone, so that every rank has to report it."""


class ConfigError(UserError):
    """A flag, configuration field or DeepSpeed setting is wrong."""


class DataError(UserError):
    """A FASTA, CSV, shard or manifest is wrong; the text names the file, and the line where there is one."""


class CheckpointError(UserError):
    """A checkpoint or exported model is missing, damaged or does not fit."""


class RankReadError(CheckpointError):
    """A rank could not read its share of a checkpoint, or a model; the others may have read theirs."""

    on_one_rank = True


class EndedEarlyError(Exception):
    """A run that ended before its last step by nobody's mistake: the same command goes on. Its text is one line."""

    exit_code = EXIT_STOPPED
    on_one_rank = False
    """Whether each rank that meets it has to report it."""


class StoppedError(EndedEarlyError):
    """A run that was asked to stop, and did so with a checkpoint."""


class RankFailureError(EndedEarlyError):
    """A run whose other ranks are gone."""

    exit_code = EXIT_RANK_FAILURE
    on_one_rank = True


def is_first_rank() -> bool:
    """Whether this process is the first of those that a launcher started, or has no launcher."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command`; turn a `UserError` into one line on standard error and exit code 2.

    Returns the exit code. An `EndedEarlyError` is one line too, with its own code; a closed pipe (`… | head`) ends
    quietly, Ctrl-C with code 130. Of the ranks that a launcher started only the first speaks, unless the error says
    that it is `on_one_rank`.
    """
    try:
        return command() or 0
    except UserError as error:
        if error.on_one_rank or is_first_rank():
            print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except EndedEarlyError as end:
        if end.on_one_rank or is_first_rank():
            print(f"{program}: {end}", file=sys.stderr)
        return end.exit_code
    except BrokenPipeError:
        # Python would complain again when it flushes standard output at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
