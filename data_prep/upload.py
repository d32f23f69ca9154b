"""Command `upload`: copy a prepared folder to object storage, and compare what is there with the manifest."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from dnabert_rm.data.columns import COLUMNS_NAME
from dnabert_rm.data.manifest import MANIFEST_NAME, Manifest, file_names, fingerprint_of, load_manifest
from dnabert_rm.data.object_store import check_url, copy, file_system, read_all, with_retries, without_secrets
from dnabert_rm.data.storage import PLACEHOLDER
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import sha256_of_file
from dnabert_rm.utils.progress import progress_bar

_NUM_UPLOADS = 3
"""Uploads of a file whose content differs when it is read back."""


@dataclass(frozen=True)
class _File:
    """A file to upload, with the size in bytes and the SHA-256 that it must have."""

    path: Path
    bytes: int
    sha256: str


def run(folder: Path, url: str, overwrite: bool = False) -> str:
    """Upload a prepared folder, the manifest last, and return one line of result.

    Every uploaded file is read back. Files that are there already with the right content are not uploaded again. So
    an upload that was interrupted continues with the same command.

    Raises `ConfigError` for a URL that can't be written, or that holds other data and `overwrite` is false. Raises
    `DataError` if a local file doesn't match the manifest, or if all tries fail.
    """
    url = url.rstrip("/")
    check_url(url, "URL", writable=True)
    if PLACEHOLDER in url:
        raise ConfigError(f"URL {without_secrets(url)}: can't contain {PLACEHOLDER}; pass the URL of a folder")
    manifest = load_manifest(folder)
    shards, last = _files(folder, manifest)
    replace = _prepare(url, manifest, overwrite)
    num_uploaded = 0
    with progress_bar("upload", sum(file.bytes for file in [*shards, last]), "byte") as bar:
        for file in [*shards, last]:
            num_uploaded += _upload(file, f"{url}/{file.path.name}", replace)
            bar.update(file.bytes)
    total = len(shards) + 1
    size = sum(file.bytes for file in [*shards, last])
    return (
        f"{url}: {total} files with {size:,} bytes match the manifest ({num_uploaded} uploaded, "
        f"{total - num_uploaded} already there)"
    )


def _files(folder: Path, manifest: Manifest) -> tuple[list[_File], _File]:
    """Return the files beside the manifest, and the manifest. Raises `DataError` if one is missing or damaged."""
    files = [_File(folder / shard.name, shard.bytes, shard.sha256) for shard in manifest.shards]
    columns = folder / COLUMNS_NAME
    if columns.is_file():
        _ = [manifest.contigs.columns[name] for name in manifest.contigs.columns]  # Reading them checks them.
        files.append(_File(columns, columns.stat().st_size, sha256_of_file(columns)))
    if (model := manifest.tokenizer.model) is not None:
        path = folder / model
        size = path.stat().st_size if path.is_file() else 0
        files.append(_File(path, size, str(manifest.tokenizer.model_sha256)))
    for file in files:
        if not file.path.is_file() or file.path.stat().st_size != file.bytes:
            raise DataError(
                f"{file.path}: is missing, or its size differs from the manifest; build the data again first"
            )
    path = folder / MANIFEST_NAME
    return files, _File(path, path.stat().st_size, sha256_of_file(path))


def _prepare(url: str, manifest: Manifest, overwrite: bool) -> bool:
    """Remove another data set at `url`, its manifest first. Return whether files at `url` may be replaced.

    They may if `overwrite` is true, or if they belong to an earlier upload of the same data. Raises `ConfigError` for
    another data set if `overwrite` is false.
    """
    address = f"{url}/{MANIFEST_NAME}"
    text = with_retries(address, lambda: _read_if_exists(address))
    if text is None:
        return overwrite
    if fingerprint_of(text) == manifest.fingerprint:
        return True
    if not overwrite:
        raise ConfigError(f"{url}: holds another data set; choose another URL or pass --overwrite")
    for name in [MANIFEST_NAME, *file_names(text)]:
        with_retries(f"{url}/{name}", lambda name=name: _remove(f"{url}/{name}"), "removed")  # type: ignore[misc]
    return True


def _read_if_exists(url: str) -> bytes | None:
    files = file_system(url)
    files.invalidate_cache()
    return read_all(url) if _size(url) is not None else None


def _size(url: str) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    try:
        return int(file_system(url).info(url)["size"])
    except FileNotFoundError:
        return None


def _remove(url: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        file_system(url).rm_file(url)


def _upload(file: _File, url: str, replace: bool) -> bool:
    """Upload a file unless it is there already. Return whether it was uploaded.

    Raises `ConfigError` if another file is there and `replace` is false.
    """
    if with_retries(url, lambda: _is_there(file, url)):
        return False
    # Read again before refusing, because the first read may have received wrong bytes.
    if not replace and with_retries(url, lambda: _size(url)) is not None:
        if with_retries(url, lambda: _is_there(file, url)):
            return False
        raise ConfigError(f"{url}: another file is there already; choose another URL or pass --overwrite")
    if sha256_of_file(file.path) != file.sha256:
        raise DataError(
            f"{file.path}: its checksum does not match the manifest; build the data again before the upload"
        )
    for _ in range(_NUM_UPLOADS):
        with_retries(url, lambda: _put(file, url), "uploaded")
        if with_retries(url, lambda: _is_there(file, url)):
            return True
    raise DataError(f"{url}: differs from {file.path} after {_NUM_UPLOADS} uploads; check the server, then try again")


def _put(file: _File, url: str) -> None:
    file_system(url).put_file(str(file.path), url)


def _is_there(file: _File, url: str) -> bool:
    """Return whether the file at `url` has the right size and SHA-256. Its whole content is read."""
    file_system(url).invalidate_cache()
    if _size(url) != file.bytes:
        return False
    digest = hashlib.sha256()
    copy(url, digest.update, file.bytes)
    return digest.hexdigest() == file.sha256
