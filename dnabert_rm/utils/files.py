"""Read, hash and write files: each output is complete or absent, whenever the process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.utils.errors import ConfigError, DataError, UserError


def check_readable_file(path: str | os.PathLike[str], content: str) -> None:
    """Raise `DataError` unless `path` is a readable file; `content` names what it should hold."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file ({content} expected); check the path")
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder, but {content} was expected; name a file in it")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read; check its permissions")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(
    path: Path, *, error: type[UserError] = DataError, advice: str = "check the file", missing: str = ""
) -> dict[str, Any]:
    """Read the object in a JSON file; raise `error` where there is none.

    Args: `advice` ends the message; `missing` ends it where there is no such file, by default `advice` too.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file; {missing or advice}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {advice}") from None
    except (ValueError, RecursionError):
        raise error(f"{path}: is not valid JSON; {advice}") from None
    if not isinstance(content, dict):
        raise error(f"{path}: does not hold a JSON object; {advice}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file; skip lines that are not complete, such as a last line cut by a kill."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def flush_to_disk(path: Path) -> None:
    """Call `fsync` on a file, or on a folder so that its list of names survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is flushed to disk and renamed to `path`, else removed.

    Args: `temporary` on the same file system as `path`, by default a hidden name beside it.
    """
    temporary = temporary or temporary_path(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that `path` holds either the old content or all of the new, even after a crash."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file as `write_text` does, with its folder where that is missing; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


@contextlib.contextmanager
def atomic_outputs(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths for a command's output files; all are renamed, in order, if the block succeeds.

    Raises `DataError` where the disk refuses a write; then no output has changed.
    """
    temporaries = [temporary_path(path) for path in paths]
    try:
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"{error.filename or paths[-1]}: {error.strerror}; nothing was written") from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`; on success it is renamed to `path`, else removed.

    Parent folders that had to be made are removed again where the block fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    made = [folder for folder in path.parents if not folder.exists()]
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_output_file(path: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where `path` cannot become a new file, or exists and `overwrite` is false."""
    if path.is_dir():
        raise ConfigError(f"--output {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {path}: {path.parent} can't be written; name another place")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output {path}: exists already; name another file or pass --overwrite")


def writable_parent(folder: Path, name: str = "train.output") -> Path:
    """Return `folder`, or its nearest parent that exists; raise `ConfigError` where nothing can be written there."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        raise ConfigError(f"{name}: {place} is a file, but a folder is needed there; name another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {place} can't be written; change its permissions or name another --output")
    return place
