"""Access to prepared folders: on a local disk, or behind a URL that webdataset can open."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from dnabert_rm.data.cache import GIGABYTE, ShardCache
from dnabert_rm.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, load_manifest, parse_manifest
from dnabert_rm.utils.errors import ConfigError, DataError, UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
NUM_TRIES = 5
FIRST_WAIT_SECONDS = 0.5
DERIVED_NAME = "reference_lines"
MAX_FILE_BYTES = 1 << 30
"""Limit for files that are read whole: the manifest and a BPE model."""
_URL = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


@dataclass(frozen=True)
class StorageSettings:
    """Settings for shard access. The fields match `[data]` in the configuration."""

    on_bad_shard: str = "fail"
    allow_pipe: bool = False
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
    scheme = _URL.match(str(path))
    if not scheme or scheme[1].lower() == "file" or os.path.exists(path):
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
        """Raise `ConfigError` for a URL that webdataset can't open, or for a `pipe:` URL without `allow_pipe`."""
        self.shown = url
        _check_url(url, storage.allow_pipe)
        self._cache = ShardCache(Path(storage.cache_dir).expanduser(), round(storage.cache_gb * GIGABYTE))
        self.derived = self._cache.folder / DERIVED_NAME

    def url_of(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        return self.shown.replace("{}", name) if "{}" in self.shown else f"{self.shown.rstrip('/')}/{name}"

    def manifest(self) -> Manifest:
        """Fetch and check the manifest. Raises `DataError` if that fails."""
        url = self.url_of(MANIFEST_NAME)
        text = _with_retries(url, lambda: _read_all(url))
        try:
            return parse_manifest(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{url}: not a valid manifest ({error}); check the URL, or upload the folder again"
            ) from None

    def read(self, name: str) -> bytes:
        """Return the content of a file in the folder. Raises `DataError` if all tries fail."""
        url = self.url_of(name)
        return _with_retries(url, lambda: _read_all(url))

    def fetch(self, info: ShardInfo) -> Path:
        """Fetch a shard if it is not in the cache, and return its path. Raises `DataError` if all tries fail."""
        url = self.url_of(info.name)
        return _with_retries(url, lambda: self._cache.get(info, lambda stream: _copy(url, stream, info.bytes)))

    def touch(self, info: ShardInfo) -> None:
        """Mark a shard as recently used, so that other shards are evicted first."""
        self._cache.touch(info)

    def drop(self, info: ShardInfo) -> bool:
        """Remove a shard from the cache. Return True, because the shard can be fetched again."""
        self._cache.drop(info)
        return True


def _check_url(url: str, allow_pipe: bool) -> None:
    from webdataset.gopen import gopen_schemes, rewrite_url

    # GOPEN_REWRITE can replace the scheme, so check the URL that will be opened.
    scheme = _URL.match(rewrite_url(url))
    name = scheme[1].lower() if scheme else ""
    if name == "pipe" and not allow_pipe:
        raise ConfigError(f"data.path {url}: a pipe: URL runs a shell command; pass --allow-pipe if you trust it")
    if name not in gopen_schemes:
        known = ", ".join(sorted(set(gopen_schemes) - {"__default__"}))
        raise ConfigError(f"data.path {url}: webdataset can't open {name or 'such'} URLs; choose one of {known}")
    if name != "pipe" and re.search(r"\s|^-", url):
        raise ConfigError(f"data.path {url!r}: a URL can't contain spaces or begin with '-'; write spaces as %20")


def _with_retries(url: str, work: Callable[[], T]) -> T:
    """Call `work`. If it fails, retry after growing pauses. Raises `DataError` with the URL if all tries fail."""
    for attempt in range(NUM_TRIES):
        try:
            return work()
        except ConfigError:
            raise
        except Exception as error:
            # Openers raise exceptions of their own libraries, so any exception counts as a failed transfer.
            reason = _reason(error)
            if attempt + 1 < NUM_TRIES:
                logger.warning("%s: %s; retrying", url, reason)
                time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise DataError(f"{url}: could not be fetched in {NUM_TRIES} tries ({reason}); check the URL and the server")


def _reason(error: Exception) -> str:
    """Return the reason for a failed transfer, without the long shell command in webdataset's message."""
    code = re.search(r": exit (-?\d+) ", str(error))
    if code:
        return f"the command that opens the URL failed with exit code {code[1]}"
    if isinstance(error, FileNotFoundError) and "/" not in str(error.filename):
        return f"{error.filename} is not installed"
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _read_all(url: str) -> bytes:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as stream:
        return stream.read(MAX_FILE_BYTES)


def _copy(url: str, out: BinaryIO, num_bytes: int) -> None:
    """Copy the file at `url` to `out`. Raises `DataError` if the file is larger than `num_bytes`."""
    from webdataset.gopen import gopen

    remaining = num_bytes
    with gopen(url, "rb") as stream:
        while piece := stream.read(1 << 20):
            remaining -= len(piece)
            if remaining < 0:
                raise DataError(f"received more than the {num_bytes} bytes that the manifest gives")
            out.write(piece)
