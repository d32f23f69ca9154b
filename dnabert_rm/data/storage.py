"""Access to prepared folders: on a local disk, or behind a URL (`data/object_store.py`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dnabert_rm.data.cache import GIGABYTE, ShardCache
from dnabert_rm.data.columns import COLUMNS_NAME
from dnabert_rm.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, load_manifest, parse_manifest
from dnabert_rm.data.object_store import check_url, copy, read_all, scheme_of, with_retries, without_secrets
from dnabert_rm.utils.errors import DataError

DERIVED_NAME = "reference_lines"
PLACEHOLDER = "{}"
"""Part of a URL that the name of each file replaces, so that a query can follow the name."""


@dataclass(frozen=True)
class StorageSettings:
    """Settings for shard access. The fields match `[data]` in the configuration."""

    on_bad_shard: str = "fail"
    cache_dir: str = "~/.cache/dnabert_rm/shards"
    cache_gb: float = 50.0


class PreparedFolder(Protocol):
    """A folder of shards with a manifest."""

    shown: str
    """The folder's name in messages."""
    is_local: bool
    derived: Path
    """Local folder for files that are computed from the data."""

    def manifest(self) -> Manifest:
        """Read and check the manifest."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file beside the manifest. Raises `DataError` if it can't be read."""

    def fetch(self, info: ShardInfo) -> Path:
        """Return the local path of a shard. Fetch the shard first if necessary."""

    def touch(self, info: ShardInfo) -> None:
        """Mark a shard as recently used."""

    def drop(self, info: ShardInfo) -> bool:
        """Remove the cached copy of a shard. Return whether the shard can be fetched again."""


def prepared_folder(path: str | Path, storage: StorageSettings) -> PreparedFolder:
    """Return the folder at a path or URL. Raises `ConfigError` if the URL is not allowed."""
    scheme = scheme_of(str(path))
    if scheme in (None, "file") or os.path.exists(path):
        return LocalFolder(re.sub("^file:(//)?", "", str(path), flags=re.IGNORECASE))
    return RemoteFolder(str(path), storage)


class LocalFolder:
    """A prepared folder on a local disk or a mounted file system."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.shown = path
        self.derived = self.path / DERIVED_NAME

    def manifest(self) -> Manifest:
        """Read and check the manifest."""
        return load_manifest(self.path)

    def read(self, name: str) -> bytes:
        """Return the content of a file in the folder. Raises `DataError` if it can't be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror}); restore the file") from None

    def fetch(self, info: ShardInfo) -> Path:
        """Return the path of a shard."""
        return self.path / info.name

    def touch(self, info: ShardInfo) -> None:
        """Do nothing: local shards are never evicted."""

    def drop(self, info: ShardInfo) -> bool:
        """Return False: local shards are read in place, so there is no copy to delete."""
        return False


class RemoteFolder:
    """A prepared folder behind a URL. A file's name replaces `{}` in the URL, or is appended if there is no `{}`."""

    is_local = False

    def __init__(self, url: str, storage: StorageSettings) -> None:
        """Raise `ConfigError` for a URL that can't be opened."""
        self.shown = without_secrets(url)
        self._url = url
        check_url(url)
        self._cache = ShardCache(Path(storage.cache_dir).expanduser(), round(storage.cache_gb * GIGABYTE))
        self.derived = self._cache.folder / DERIVED_NAME

    def url_of(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        if PLACEHOLDER in self._url:
            return self._url.replace(PLACEHOLDER, name)
        return f"{self._url.rstrip('/')}/{name}"

    def manifest(self) -> Manifest:
        """Fetch and check the manifest. Raises `DataError` if that fails."""
        url = self.url_of(MANIFEST_NAME)
        text = with_retries(url, lambda: _read_twice(url))
        return parse_manifest(
            text,
            without_secrets(url),
            lambda: (self.read(COLUMNS_NAME), without_secrets(self.url_of(COLUMNS_NAME))),
            "check the URL, or upload the folder again",
        )

    def read(self, name: str) -> bytes:
        """Return the content of a file in the folder. Raises `DataError` if all tries fail."""
        url = self.url_of(name)
        return with_retries(url, lambda: _read_twice(url))

    def fetch(self, info: ShardInfo) -> Path:
        """Fetch a shard if it is not in the cache, and return its path. Raises `DataError` if all tries fail."""
        url = self.url_of(info.name)
        return with_retries(url, lambda: self._cache.get(info, lambda stream: copy(url, stream.write, info.bytes)))

    def touch(self, info: ShardInfo) -> None:
        """Mark a shard as recently used, so that other shards are evicted first."""
        self._cache.touch(info)

    def drop(self, info: ShardInfo) -> bool:
        """Remove a shard from the cache. Return True, because the shard can be fetched again."""
        self._cache.drop(info)
        return True


def _read_twice(url: str) -> bytes:
    """Return the content of a small file. Raises `DataError` if a second read differs.

    The manifest has no checksum that could be compared.
    """
    content = read_all(url)
    if read_all(url) != content:
        raise DataError("two reads of the file gave different bytes")
    return content
