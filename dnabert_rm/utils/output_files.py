"""Output that is complete or not there: written aside, renamed at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dnabert_rm.utils.errors import ConfigError, DataError


def check_output(path: Path, overwrite: bool) -> None:
    """`ConfigError` where `path` can't become a new file, or exists and must not be replaced."""
    if path.is_dir():
        raise ConfigError(f"--output {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {path}: {path.parent} can't be written; name another place")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output {path}: exists already; name another file or pass --overwrite")


@contextlib.contextmanager
def written_aside(*paths: Path) -> Iterator[list[Path]]:
    """Names beside `paths` to write to; renamed to `paths`, in order, when all went well, else removed.

    `DataError` where the disk refuses.
    """
    asides = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield asides
        for aside, path in zip(asides, paths, strict=True):
            os.replace(aside, path)
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"{error.filename or paths[-1]}: {error.strerror}; nothing was written") from error
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)
