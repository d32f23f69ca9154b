"""The contract on disk: `manifest.json`, shard members, the data's fingerprint.

A prepared folder holds `manifest.json` and the shards it names. A shard is a tar, written by
webdataset, with two members a segment: `KEY.ids.npy` (1-D uint16 or uint32 token ids) and
`KEY.json` (`genome, contig, start, end, split`; bases, 0-based half-open). `docs/data_format.md`
has the whole.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dnabert_rm.utils.errors import ConfigError


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new, even after a crash."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have the system put a file or a folder's list of names on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writable_place(folder: Path, name: str = "train.output") -> Path:
    """The folder, or the nearest one above it that exists; `ConfigError` names the setting where none can be made."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        raise ConfigError(f"{name}: {place} is a file, but a folder is needed there; name another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {place} can't be written; change its permissions or name another --output")
    return place
