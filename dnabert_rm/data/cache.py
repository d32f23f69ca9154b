"""Local cache of remote shards: a folder of bounded size that several processes share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dnabert_rm.data.manifest import ShardInfo
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import atomic_file, sha256_of_file
from dnabert_rm.utils.lock import LockHeldError, file_lock

Fetch = Callable[[BinaryIO], None]
"""Function that writes a shard's bytes to the given open file, from its current position on."""
GIGABYTE = 10**9


class ShardCache:
    """A folder of cached shards. When space is needed, the least recently used shards are evicted.

    Only one process at a time fetches a given shard. This process writes a temporary file, checks its size and SHA-256
    against the manifest, and then renames the file. Space is reserved before the fetch, so the folder never exceeds
    `max_bytes`. A cached shard is named `SHA256.tar` after its checksum, not after its name in the manifest. So a
    remote manifest can't choose a path outside the folder. The folder must be on a local disk, because the locks use
    `flock`.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        """Create the folder. Raises `ConfigError` if that fails."""
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        try:
            self._locks = self.folder / "locks"
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"data.cache_dir {self.folder}: can't be created ({error}); choose another folder"
            ) from None

    def path(self, info: ShardInfo) -> Path:
        """Return the path of a shard in the cache. The file may not exist yet."""
        return self.folder / f"{info.sha256}.tar"

    def get(self, info: ShardInfo, fetch: Fetch) -> Path:
        """Return the path of a shard in the cache. If the shard is missing, call `fetch` with an open file to write to.

        Raises `DataError` if the fetched file does not match the manifest, and `ConfigError` if the cache is too small.
        Exceptions of `fetch` are not caught.
        """
        path = self.path(info)
        if self.touch(info):
            return path
        with self._locked(info.sha256):
            if self.touch(info):  # another process fetched it meanwhile
                return path
            with atomic_file(path, path.with_suffix(".tmp")) as temporary:
                self._reserve_space(temporary, info)
                with open(temporary, "r+b") as stream:
                    fetch(stream)
                    stream.truncate()
                _check(temporary, info)
        return path

    def touch(self, info: ShardInfo) -> bool:
        """Mark a shard as used now. Return False if the shard is not in the cache."""
        try:
            os.utime(self.path(info))
            return True
        except FileNotFoundError:
            return False

    def drop(self, info: ShardInfo) -> None:
        """Remove a shard, so that the next `get` fetches it again."""
        self.path(info).unlink(missing_ok=True)

    def _reserve_space(self, temporary: Path, info: ShardInfo) -> None:
        """Create a file of the shard's size at `temporary`, after evicting as many shards as necessary."""
        with self._locked("room"):
            self._remove_abandoned()
            used = sum(size for _, size, _ in self._files("*.tmp"))
            ready = sorted(self._files("*.tar"))
            used += sum(size for _, size, _ in ready)
            for _, size, oldest in ready:
                if used + info.bytes <= self.max_bytes:
                    break
                oldest.unlink(missing_ok=True)
                used -= size
            if used + info.bytes > self.max_bytes:
                raise ConfigError(
                    f"data.cache_gb {self.max_bytes / GIGABYTE:g}: no space for shard {info.name} of {info.bytes} "
                    f"bytes while other shards are being fetched; raise --data.cache_gb"
                )
            with open(temporary, "wb") as stream:
                stream.truncate(info.bytes)

    def _files(self, pattern: str) -> list[tuple[float, int, Path]]:
        """Return (last use, size, path) of each file that matches `pattern`. Skip files removed by other processes."""
        found = []
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _remove_abandoned(self) -> None:
        """Remove each partial file whose lock no process holds, because the process that wrote the file was killed."""
        for temporary in self.folder.glob("*.tmp"):
            with contextlib.suppress(LockHeldError), self._locked(temporary.stem, wait=False):
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold an inter-process lock. Raises `LockHeldError` if another process holds it and `wait` is False."""
        with file_lock(self._locks / name, wait=wait, required=True):
            yield


def _check(path: Path, info: ShardInfo) -> None:
    """Raise `DataError` unless a fetched file has the size and SHA-256 given in the manifest."""
    size = path.stat().st_size
    if size != info.bytes:
        raise DataError(f"received {size} bytes, but the manifest gives {info.bytes}")
    if sha256_of_file(path) != info.sha256:
        raise DataError("the SHA-256 of the received file does not match the manifest")
