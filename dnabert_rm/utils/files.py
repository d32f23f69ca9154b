"""Read, hash and write files. Outputs are complete or absent, even if the process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.utils.errors import NO_SPACE, ConfigError, DataError, UserError


def check_readable_file(path: str | os.PathLike[str], content: str) -> None:
    """Raise `DataError` unless `path` is a readable file. `content` names the expected content in the message."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file ({content} expected); check the path")
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder, but {content} was expected; pass the path of a file")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read; check its permissions")


def check_regular_file(path: str | os.PathLike[str], reason: str) -> None:
    """Raise `DataError` if `path` is a pipe or another special file; `reason` says why a regular file is needed."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise DataError(f"{path}: is {kind}, but {reason}; write the data to a file first")


@contextlib.contextmanager
def explain_full_temporary_folder() -> Iterator[None]:
    """Raise `DataError` if the `with` block runs out of space for temporary files, or finds no folder for them."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_SPACE, errno.ENOENT):
            raise
        # tempfile reports that it finds no writable folder as ENOENT.
        folder = "temporary files" if error.errno == errno.ENOENT else tempfile.gettempdir()
        raise DataError(
            f"{folder}: no space for a temporary copy ({error.strerror or 'no writable folder'}); free some space, or "
            "set TMPDIR to another folder"
        ) from None


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading it in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(
    path: Path, *, error: type[UserError] = DataError, advice: str = "check the file", missing: str = ""
) -> dict[str, Any]:
    """Return the JSON object in a file. Raise `error` if the file can't be read or holds no JSON object.

    Args:
        advice: End of the error message, which says what the user should do.
        missing: Advice for a missing file; by default `advice`.
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


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file is missing or damaged."""
    with contextlib.suppress(UserError):
        return read_json(path)
    return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file. Skip incomplete lines, such as one that a killed process left."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def flush_to_disk(path: Path) -> None:
    """Call `fsync` on a file or folder, so that the file's content or the folder's entries survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path` that no other process uses, also on other nodes."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to. If the `with` block succeeds, rename the file to `path`.

    The file is flushed to disk before the renaming. If the block fails, the file is removed.

    Args:
        temporary: Path on the same file system as `path`; by default a hidden name beside `path`.
    """
    temporary = temporary or temporary_path(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically. After a crash, `path` has either its old content or the complete new content."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file atomically and return `path`. Create the file's folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


@contextlib.contextmanager
def atomic_outputs(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths for a command's output files.

    If the `with` block succeeds, rename the temporary files to `paths`, in order. If the block fails, the
    output files stay unchanged. Raises `DataError` for a write error, such as a full disk.
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
    """Yield a new hidden folder beside `path`. If the `with` block succeeds, rename the folder to `path`.

    If the block fails, remove the folder, and also the parent folders that this call created.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    created = [folder for folder in path.parents if not folder.exists()]
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def apply_umask(folder: Path) -> None:
    """Give all files of a folder the permissions of newly created files, because safetensors makes files private."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask)


def check_not_input(output: Path, inputs: Iterable[str | os.PathLike[str]], name: str = "--output") -> None:
    """Raise `ConfigError` if `output` is one of the files that a command reads, or a link to one of these files.

    Args:
        inputs: Files, and folders whose files are read. `-` is standard input. Missing files are ignored.
        name: The output's flag, for the message.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(output)
        for path in inputs:
            for file in _input_files(path):
                with contextlib.suppress(OSError, ValueError):  # ValueError: standard input is closed
                    if os.path.samestat(found, os.stat(file)):
                        shown = "standard input" if isinstance(file, int) else file
                        raise ConfigError(
                            f"{name} {output}: is the same file as the input {shown}; choose another file"
                        )


def _input_files(path: str | os.PathLike[str]) -> Iterator[int | Path]:
    """Yield `path`, or all files below `path` if it is a folder. For standard input (`-`), yield file descriptor 0."""
    if os.fspath(path) == "-":
        yield 0
    elif os.path.isdir(path):
        yield from (file for file in Path(path).rglob("*") if file.is_file())
    else:
        yield Path(path)


def check_output_file(
    path: Path, overwrite: bool, inputs: Iterable[str | os.PathLike[str]] = (), name: str = "--output"
) -> None:
    """Raise `ConfigError` if `path` can't be created, or if it exists and `overwrite` is false.

    Also raise `ConfigError` if `path` is one of the `inputs`, as in `check_not_input`. `name` is the output's flag.
    """
    if path.is_dir():
        raise ConfigError(f"{name} {path}: is a folder; pass the path of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{name} {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} {path}: {path.parent} can't be written; choose another folder")
    check_not_input(path, inputs, name)
    if path.exists() and not overwrite:
        raise ConfigError(f"{name} {path}: exists already; choose another file or pass --overwrite")


def writable_parent(folder: Path, name: str = "train.output") -> Path:
    """Return `folder` if it exists, otherwise its nearest existing parent.

    Raises `ConfigError` if this path is a file, or a folder without write permission.
    """
    candidates = (folder.absolute(), *folder.absolute().parents)
    parent = next(path for path in candidates if path.exists() or path.is_symlink())
    if not parent.is_dir():
        raise ConfigError(f"{name}: {parent} is a file, but must be a folder; choose another --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {parent} can't be written; change its permissions or choose another --output")
    return parent
