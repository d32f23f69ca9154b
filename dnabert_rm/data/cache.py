"""Shards fetched from elsewhere, kept in a local folder of bounded size that several processes share."""

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
"""Writes a shard's bytes to the open file it is given, from its current place on."""
GIGABYTE = 10**9


class ShardCache:
    """A folder of `SHA256.tar` files; the least recently used go when room is needed.

    A shard is fetched by one process at a time, under another name, and renamed once its size and SHA-256 are those
    of the manifest. Its room is taken before it is fetched, so that the folder never grows beyond `max_bytes`.
    Names come from checksums alone, so nothing that is fetched chooses where it lies. Use a local disk: the locks
    are `flock`'s.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        """Makes the folder; `ConfigError` where that fails."""
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            self._locks = self.folder / "locks"
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"data.cache_dir {self.folder}: can't be made ({error}); name another folder") from None

    def path(self, info: ShardInfo) -> Path:
        """Where a shard lies once it is there."""
        return self.folder / f"{info.sha256}.tar"

    def get(self, info: ShardInfo, fetch: Fetch) -> Path:
        """The path of a shard, fetched if need be; whatever `fetch` raises passes through.

        `DataError` where what was fetched is not what the manifest says, `ConfigError` where there is no room.
        """
        path = self.path(info)
        if self.touch(info):
            return path
        with self._locked(info.sha256):
            if self.touch(info):  # another process fetched it meanwhile
                return path
            with atomic_file(path, path.with_suffix(".tmp")) as temporary:
                self._take_room(temporary, info)
                with open(temporary, "r+b") as stream:
                    fetch(stream)
                    stream.truncate()
                _check(temporary, info)
        return path

    def touch(self, info: ShardInfo) -> bool:
        """Mark a shard as used now; false where it is not there."""
        try:
            os.utime(self.path(info))
            return True
        except FileNotFoundError:
            return False

    def drop(self, info: ShardInfo) -> None:
        """Remove a shard, so that it is fetched again."""
        self.path(info).unlink(missing_ok=True)

    def _take_room(self, aside: Path, info: ShardInfo) -> None:
        """Make a file of the shard's size at `aside`, after removing what has to go for it."""
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
                    f"data.cache_gb {self.max_bytes / GIGABYTE:g}: no room for shard {info.name} of {info.bytes} bytes "
                    f"beside what is being fetched; raise it (--data.cache_gb)"
                )
            with open(aside, "wb") as stream:
                stream.truncate(info.bytes)

    def _files(self, pattern: str) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of the files of one kind; another process may remove some meanwhile."""
        found = []
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _remove_abandoned(self) -> None:
        """Remove half-fetched files whose process was killed: nobody holds their lock."""
        for aside in self.folder.glob("*.tmp"):
            with contextlib.suppress(LockHeldError), self._locked(aside.stem, wait=False):
                aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a lock among processes; `LockHeldError` where `wait` is false and another holds it."""
        with file_lock(self._locks / name, wait=wait):
            yield


def _check(path: Path, info: ShardInfo) -> None:
    """`DataError` unless the file has the size and checksum that the manifest says."""
    found, size = sha256_of_file(path), path.stat().st_size
    if size != info.bytes:
        raise DataError(f"{size} bytes came, the manifest says {info.bytes}")
    if found != info.sha256:
        raise DataError("the SHA-256 of what came is not the manifest's")
