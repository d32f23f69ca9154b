"""Errors that commands report in one line, and their exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_HANG = 70
"""A wait took longer than `train.hang_timeout_seconds`; the stack traces are in the run folder."""
EXIT_RANK_FAILURE = 71
"""Another rank of the run has failed."""
EXIT_STOPPED = 75
"""A run was asked to stop and has saved a checkpoint (EX_TEMPFAIL in sysexits.h)."""
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Environment variables in which launchers store a process's rank, innermost launcher first."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a quota or a limit on the size of files."""
FAILING_DISK = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.ENOTCONN, errno.ECONNABORTED, errno.EREMOTEIO,
    errno.EHOSTDOWN, errno.ESHUTDOWN,
)  # fmt: skip
"""Errors of a damaged disk, and of a network file system whose server does not answer or has lost a file."""


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


class FileSystemError(UserError):
    """A file system is full, read-only or failing, such as a network file system whose server does not answer."""

    on_one_rank = True


class HubError(UserError):
    """The Hugging Face hub can't be reached or refuses an upload. The files on this machine are unchanged."""


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


def file_system_advice(error: OSError) -> str | None:
    """Return what the user should do about a full or failing file system, or None for another error."""
    if error.errno in NO_SPACE:
        return "free space on disk"
    return "check the file system" if error.errno in FAILING_DISK else None


@contextlib.contextmanager
def explain_file_system_errors(folder: Path, advice: str) -> Iterator[None]:
    """If the block fails because a file system is full or failing, raise a one-line `FileSystemError`.

    `folder` is named if the error has no file name. `advice` follows what to do about the file system.

    A loader worker's bus error counts, too. Shards are memory-mapped, so a read that fails raises no exception. PyTorch
    raises a RuntimeError for it wherever the main thread is at that moment, usually in the middle of a step.
    """
    try:
        yield
    except RuntimeError as error:
        reasons = f"{error} {error.__context__}"  # the loader may raise another error while it handles this one
        if "DataLoader worker" not in reasons or "Bus error" not in reasons:
            raise
        raise FileSystemError(
            "a loader worker ended with a bus error: a shard could not be read from its file system, or /dev/shm is "
            f"full; check both, or copy the data to a local disk, {advice}"
        ) from None
    except OSError as error:
        if (first := file_system_advice(error)) is None:
            raise
        raise FileSystemError(f"{error.filename or folder}: {error.strerror}; {first}, {advice}") from None


def is_first_rank() -> bool:
    """Return whether this process is rank 0 of its launcher, or was started without a launcher."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return its exit code, reporting expected errors as one line on standard error.

    A `UserError` gives exit code 2, an `EndedEarlyError` gives its `exit_code`, and Ctrl-C gives 130. A closed pipe
    (`… | head`) ends the command without a message. Rank 0 reports every error. The other ranks report only
    errors whose `on_one_rank` is set. A full or failing file system counts as a `UserError` of this rank.
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
    except OSError as error:
        if (advice := file_system_advice(error)) is None:
            raise
        file = f"{error.filename}: " if error.filename else ""
        print(f"{program}: error: {file}{error.strerror}; {advice}, and run the command again", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
