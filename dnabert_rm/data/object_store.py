"""Files behind URLs, through fsspec: S3, Google Cloud Storage, HTTP(S) and the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import re
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from dnabert_rm.utils.errors import ConfigError, DataError, UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
NUM_TRIES = 5
"""Smallest number of tries, and the number where the server has answered that there is no such file, for example."""
PATIENCE_SECONDS = 120
"""How long a server that can't be reached, or reports an error of its own, is tried again."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10
CONNECT_SECONDS = 15
SILENCE_SECONDS = 60
"""A transfer fails if a connection takes longer than `CONNECT_SECONDS` or receives nothing for `SILENCE_SECONDS`."""
MAX_FILE_BYTES = 1 << 30
"""Limit for files that are read whole: the manifest and a BPE model."""
PIECE_BYTES = 1 << 20
_TRY_LATER = (408, 425, 429)
"""HTTP status codes from 400 to 499 that can change: time-out, too early, too many requests."""
_BLOCK_BYTES = 8 << 20
"""Bytes per request where fsspec reads a file in ranges."""
_reached: set[str] = set()
"""Hosts, or buckets, that have answered this process."""
# Scheme, user and password, rest, query.
_SECRETS = re.compile(r"(\w+://)([^\s/@]*@)?([^\s?'\"]*)(\?[^\s'\"]*)?")
_URL = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


@dataclass(frozen=True)
class _Scheme:
    """The module that fsspec needs for a scheme, and what to pass to `pip install` for it."""

    module: str
    package: str
    writable: bool = True


_SCHEMES = {
    "gs": _Scheme("gcsfs", "dnabert_rm[gcs]"),
    "hf": _Scheme("huggingface_hub", "huggingface_hub"),
    "http": _Scheme("aiohttp", "dnabert_rm[http]", writable=False),
    "https": _Scheme("aiohttp", "dnabert_rm[http]", writable=False),
    "s3": _Scheme("s3fs", "dnabert_rm[s3]"),
}


def without_secrets(text: str) -> str:
    """Return a text in which URLs have no password and no query, such as the signature of a signed URL."""
    return _SECRETS.sub(lambda found: f"{found[1]}{found[3]}{'?…' if found[4] else ''}", text)


def scheme_of(url: str) -> str | None:
    """Return the scheme of a URL in lower case, or None for a path."""
    found = _URL.match(url)
    return found[1].lower() if found else None


def check_url(url: str, name: str = "data.path", writable: bool = False) -> None:
    """Raise `ConfigError` if files behind `url` can't be read (or written), or if a package for them is missing."""
    scheme, shown = scheme_of(url), without_secrets(url)
    if scheme == "pipe":
        raise ConfigError(
            f"{name} {shown}: pipe: URLs are not supported; use the s3://, gs://, hf:// or https:// URL of the folder, "
            f"or copy the folder to a disk"
        )
    known = {key: value for key, value in _SCHEMES.items() if value.writable or not writable}
    if scheme not in known or not url.startswith(f"{scheme}://"):
        verb = "write to" if writable else "read"
        raise ConfigError(f"{name} {shown}: can't {verb} {url.split(':')[0]} URLs; choose one of {', '.join(known)}")
    if re.search(r"\s", url):
        raise ConfigError(f"{name} {url!r}: a URL can't contain spaces; write spaces as %20")
    module, package = known[scheme].module, known[scheme].package
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{name} {shown}: {scheme}:// needs {module}; install it with `pip install '{package}'`")


def file_system(url: str) -> Any:
    """Return fsspec's file system for a URL.

    fsspec keeps one per process and options, and makes a new one after a fork. So callers must not keep it. Its own
    retries are switched off where it allows that, because `with_retries` repeats whole transfers.
    """
    import fsspec
    from fsspec.config import conf

    scheme = scheme_of(url)
    options: dict[str, Any] = {}
    if scheme == "s3":
        retries = {"total_max_attempts": 1}
        options["config_kwargs"] = {
            "connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS, "retries": retries
        }  # fmt: skip
    elif scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        # The URL is sent as it is written, because a signed URL must not change. trust_env: proxies.
        options |= {"encoded": True, "client_kwargs": {"timeout": timeout, "trust_env": True}}
    for key, value in conf.get(scheme, {}).items():
        options[key] = {**options.get(key, {}), **value} if isinstance(value, dict) else value
    found = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        found.retries = 1
    return found


def open_url(url: str) -> AbstractContextManager[BinaryIO]:
    """Open a file for reading from its start to its end."""
    options: dict[str, Any] = {"block_size": _BLOCK_BYTES}
    if scheme_of(url) in ("http", "https"):
        # One request for the whole file. A size other than 0 avoids a HEAD request, which signed URLs refuse.
        options = {"block_size": 0, "size": 1}
    elif scheme_of(url) == "hf":
        options = {"block_size": 0}
    stream: AbstractContextManager[BinaryIO] = file_system(url).open(url, "rb", **options)
    return stream


def read_all(url: str) -> bytes:
    """Return the content of a small file. Raises `DataError` if it is larger than `MAX_FILE_BYTES`."""
    pieces: list[bytes] = []
    copy(url, pieces.append, MAX_FILE_BYTES)
    return b"".join(pieces)


def copy(url: str, write: Callable[[bytes], Any], num_bytes: int) -> None:
    """Pass the content of a file to `write`, in pieces. Raises `DataError` if there are more than `num_bytes`."""
    remaining = num_bytes
    with open_url(url) as stream:
        while piece := stream.read(PIECE_BYTES):
            remaining -= len(piece)
            if remaining < 0:
                raise DataError(f"received more than the {num_bytes} bytes that the manifest gives")
            write(piece)


def with_retries(url: str, work: Callable[[], T], verb: str = "fetched") -> T:
    """Call `work`. If it fails, retry after growing pauses. Raises `DataError` with the URL if all tries fail.

    There are `NUM_TRIES` tries, and more until `PATIENCE_SECONDS` have passed, so that a restart of the server doesn't
    end a run. An answer that would stay the same, such as a missing file, gets `NUM_TRIES` only. So does a host name
    that is unknown, unless this process has reached the host before: then the fault of the name server may pass.
    """
    shown, first = without_secrets(url), time.monotonic()
    server = url.partition("://")[2].partition("/")[0]
    for attempt in itertools.count(1):
        try:
            result = work()
            _reached.add(server)
            return result
        except ConfigError:
            raise
        except Exception as error:
            # File systems raise exceptions of their own libraries, so any exception counts as a failed transfer.
            reason = _reason(error)
            is_final = _is_final(error) or (server not in _reached and _is_unknown_host(error))
        if attempt >= NUM_TRIES and (is_final or time.monotonic() - first > PATIENCE_SECONDS):
            break
        logger.warning("%s: %s; retrying", shown, reason)
        time.sleep(min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS))
    raise DataError(f"{shown}: could not be {verb} in {attempt} tries ({reason}); check the URL and the server")


def _is_final(error: Exception) -> bool:
    """Return whether an error stays the same however long one waits: a missing file, no credentials, wrong bytes."""
    answers = (FileNotFoundError, PermissionError, UserError, ValueError, TypeError)
    found = (getattr(error, "status", None), getattr(getattr(error, "response", None), "status_code", None))
    statuses = [status for status in found if isinstance(status, int)]
    is_refused = any(400 <= status < 500 and status not in _TRY_LATER for status in statuses)
    return is_refused or isinstance(error, answers) or "Credentials" in type(error).__name__


def _is_unknown_host(error: BaseException | None) -> bool:
    """Return whether the name server has answered that there is no such host."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return without_secrets(" ".join(text.split()))
