"""Errors that commands report in one line, and their exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_HANG = 70
"""A wait took longer than `train.hang_timeout_seconds`; the stack traces are in the run folder."""
EXIT_RANK_FAILURE = 71
"""Another rank of the run has failed."""
EXIT_STOPPED = 75
"""A run was asked to stop and has saved a checkpoint (EX_TEMPFAIL in sysexits.h)."""
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Environment variables in which launchers store a process's rank, innermost launcher first."""


class UserError(Exception):
    """An error that the user can fix. Its message is one line and says what to change."""

    on_one_rank = False
    """Whether the error can occur on some ranks only. Then each of these ranks reports it, not only rank 0."""


class ConfigError(UserError):
    """A flag, configuration field or DeepSpeed setting is wrong."""


class DataError(UserError):
    """A FASTA, CSV, shard or manifest is wrong. The message names the file, and the line if it is known."""


class CheckpointError(UserError):
    """A checkpoint or exported model is missing, damaged or incompatible."""


class RankReadError(CheckpointError):
    """A rank could not read its part of a checkpoint or model. Other ranks may have succeeded."""

    on_one_rank = True


class EndedEarlyError(Exception):
    """A run ended before its last step, but not because of a user error. The same command resumes the run.

    The message is one line.
    """

    exit_code = EXIT_STOPPED
    on_one_rank = False
    """Whether the error can occur on some ranks only, as in `UserError`."""


class StoppedError(EndedEarlyError):
    """A run was asked to stop, and stopped after saving a checkpoint."""


class RankFailureError(EndedEarlyError):
    """Another rank of the run has failed."""

    exit_code = EXIT_RANK_FAILURE
    on_one_rank = True


def is_first_rank() -> bool:
    """Return whether this process is rank 0 of its launcher, or was started without a launcher."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return its exit code, reporting expected errors as one line on standard error.

    A `UserError` gives exit code 2, an `EndedEarlyError` gives its `exit_code`, and Ctrl-C gives 130. A closed pipe
    (`… | head`) ends the command without a message. Rank 0 reports every error. The other ranks report only
    errors whose `on_one_rank` is set.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not be UTF-8, and names in files may have any characters. As for standard error by default.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command() or 0
    except UserError as error:
        if error.on_one_rank or is_first_rank():
            print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except EndedEarlyError as error:
        if error.on_one_rank or is_first_rank():
            print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Otherwise Python reports the error again when it flushes standard output at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
