"""Where prepared folders lie: on a local disk, or behind a URL that webdataset's opener knows."""

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
MAX_MANIFEST_BYTES = 1 << 30
_URL = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


@dataclass(frozen=True)
class StorageSettings:
    """How shards are reached; the fields are the `[data]` configuration's."""

    on_bad_shard: str = "fail"
    allow_pipe: bool = False
    cache_dir: str = "~/.cache/dnabert_rm/shards"
    cache_gb: float = 50.0


class PreparedFolder(Protocol):
    """What the reader needs of a prepared folder; `shown` is its name in messages."""

    shown: str
    is_local: bool

    def manifest(self) -> Manifest:
        """Read and check the manifest."""

    def fetch(self, info: ShardInfo) -> Path:
        """A local path of a shard."""

    def touch(self, info: ShardInfo) -> None:
        """The shard is in use."""

    def drop(self, info: ShardInfo) -> bool:
        """Forget a damaged copy; whether another can be fetched."""


def prepared_folder(path: str | Path, storage: StorageSettings) -> PreparedFolder:
    """The folder that a path or URL names; `ConfigError` where its kind is not allowed."""
    scheme = _URL.match(str(path))
    if not scheme or scheme[1].lower() == "file" or os.path.exists(path):
        return LocalFolder(re.sub("^file:(//)?", "", str(path), flags=re.IGNORECASE))
    return RemoteFolder(str(path), storage)


class LocalFolder:
    """A prepared folder on a disk of this machine, or one that looks like it."""

    is_local = True

    def __init__(self, path: str) -> None:
        self.path, self.shown = Path(path), path

    def manifest(self) -> Manifest:
        """Read and check the manifest."""
        return load_manifest(self.path)

    def fetch(self, info: ShardInfo) -> Path:
        """Where the shard lies."""
        return self.path / info.name

    def touch(self, info: ShardInfo) -> None:
        """Nothing to do."""

    def drop(self, info: ShardInfo) -> bool:
        """A damaged file is all there is."""
        return False


class RemoteFolder:
    """A prepared folder behind a URL; `{}` in it stands for the file's name, which else is put at its end."""

    is_local = False

    def __init__(self, url: str, storage: StorageSettings) -> None:
        """`ConfigError` for `pipe:` unless it is allowed, and for URLs that nothing opens."""
        self.shown = url
        _check_url(url, storage.allow_pipe)
        self._cache = ShardCache(Path(storage.cache_dir).expanduser(), round(storage.cache_gb * GIGABYTE))

    def url_of(self, name: str) -> str:
        """The URL of one file of the folder."""
        return self.shown.replace("{}", name) if "{}" in self.shown else f"{self.shown.rstrip('/')}/{name}"

    def manifest(self) -> Manifest:
        """Fetch and check the manifest; `DataError` where it can't be fetched or is none."""
        url = self.url_of(MANIFEST_NAME)
        text = _with_retries(url, lambda: _read_all(url))
        try:
            return parse_manifest(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{url}: not a valid manifest ({error}); check the URL, or upload the folder again"
            ) from None

    def fetch(self, info: ShardInfo) -> Path:
        """The shard's path in the cache, fetched and checked if need be; `DataError` after the last try."""
        url = self.url_of(info.name)
        return _with_retries(url, lambda: self._cache.get(info, lambda stream: _copy(url, stream, info.bytes)))

    def touch(self, info: ShardInfo) -> None:
        """The shard is in use, so others leave the cache first."""
        self._cache.touch(info)

    def drop(self, info: ShardInfo) -> bool:
        """Remove the shard from the cache; it can be fetched again."""
        self._cache.drop(info)
        return True


def _check_url(url: str, allow_pipe: bool) -> None:
    from webdataset.gopen import gopen_schemes, rewrite_url

    # GOPEN_REWRITE can turn one scheme into another, so what counts is what will be opened.
    scheme = _URL.match(rewrite_url(url))
    name = scheme[1].lower() if scheme else ""
    if name == "pipe" and not allow_pipe:
        raise ConfigError(f"data.path {url}: pipe: runs a shell command; allow it with --allow-pipe if you trust it")
    if name not in gopen_schemes:
        known = ", ".join(sorted(set(gopen_schemes) - {"__default__"}))
        raise ConfigError(f"data.path {url}: webdataset opens no {name or 'such'} URLs; give one of {known}")
    if name != "pipe" and re.search(r"\s|^-", url):
        raise ConfigError(f"data.path {url!r}: a URL has no blanks; write them as %20")


def _with_retries(url: str, work: Callable[[], T]) -> T:
    """Do `work`, again after a growing pause where it fails; `DataError` names the URL after the last try."""
    for attempt in range(NUM_TRIES):
        try:
            return work()
        except ConfigError:
            raise
        except Exception as error:
            # Openers raise what their own libraries raise, so any failure counts as one of the way.
            reason = _reason(error)
            if attempt + 1 < NUM_TRIES:
                logger.warning("%s: %s; trying again", url, reason)
                time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise DataError(f"{url}: could not be fetched in {NUM_TRIES} tries ({reason}); check the URL and the server")


def _reason(error: Exception) -> str:
    """An opener's failure in a few words: webdataset's text holds the whole command."""
    code = re.search(r": exit (-?\d+) ", str(error))
    if code:
        return f"the opener's command ended with code {code[1]}"
    if isinstance(error, FileNotFoundError) and "/" not in str(error.filename):
        return f"{error.filename} is not installed"
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _read_all(url: str) -> bytes:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as stream:
        return stream.read(MAX_MANIFEST_BYTES)


def _copy(url: str, out: BinaryIO, num_bytes: int) -> None:
    """Copy what comes from `url`; `DataError` as soon as it is more than `num_bytes`."""
    from webdataset.gopen import gopen

    left = num_bytes
    with gopen(url, "rb") as stream:
        while piece := stream.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise DataError(f"more than the {num_bytes} bytes came that the manifest says")
            out.write(piece)
