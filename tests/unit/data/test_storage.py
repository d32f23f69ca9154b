"""Shards behind URLs: retries, checksums, the size limit of the cache, and refused URLs."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import itertools
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import NoCredentialsError
from s3_server import use
from support import free_port, random_bases, random_repeats, write_prepared

from dnabert_rm.data import object_store
from dnabert_rm.data import split_reader as split_reader_module
from dnabert_rm.data.cache import ShardCache
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.object_store import without_secrets
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.utils.errors import ConfigError, DataError

SAMPLES = np.arange(60)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. `respond(path, count)` may change the status and body of the count-th request of a path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests = folder, Counter()
        self.respond = lambda path, count: (200, None)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data"


class Handler(http.server.BaseHTTPRequestHandler):
    """Handler of one request."""

    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/data/")
        self.server.requests[name] += 1
        status, body = self.server.respond(name, self.server.requests[name])
        path = self.server.folder / name
        if body is None:
            body = path.read_bytes() if path.is_file() else b""
            status = status if path.is_file() else 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four prepared shards of about 30 kB."""
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_bases(rng, 5000), random_bases(rng, 7000)] for _ in range(4)])
    return tmp_path / "data"


@pytest.fixture
def server(folder) -> Iterator[Server]:
    """The folder behind a local server."""
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0)


def windows(location: str | Path, tmp_path: Path, **storage) -> np.ndarray:
    """Return the first windows of a folder or URL."""
    settings = StorageSettings(cache_dir=str(tmp_path / "cache"), **storage)
    return dataset(location, settings).windows(SAMPLES, 0).ids


def dataset(location: str | Path, settings: StorageSettings) -> WindowDataset:
    return WindowDataset([location], [], WindowSettings(window=42, num_streams=4), 0, settings)


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.tar"))


def test_a_url_gives_the_windows_of_its_folder_and_is_fetched_once(folder, server, tmp_path):
    expected = windows(folder, tmp_path)
    assert (windows(server.url, tmp_path) == expected).all()
    assert (windows(server.url + "/", tmp_path) == expected).all()
    assert (windows(f"file://{folder}", tmp_path) == expected).all()
    assert {name: count for name, count in server.requests.items() if name.endswith(".tar")} == {
        f"shard-{number:06d}.tar": 1 for number in range(4)
    }
    assert {path.stem for path in cached(tmp_path)} == {shard.sha256 for shard in load_manifest(folder).shards}


def test_a_url_gives_the_soft_masks_of_its_folder_even_if_shards_are_evicted(tmp_path, monkeypatch):
    """And if few soft masks are kept."""
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_repeats(rng, 9000)] for _ in range(4)], soft_mask=True)
    settings = WindowSettings(window=42, num_streams=4, soft_mask=True)
    local = WindowDataset([tmp_path / "data"], [], settings, 0)
    expected = local.windows(SAMPLES, 0).soft_mask.bits
    assert (np.unpackbits(expected).mean() > 0.2) and len(local.readers[0]._soft_masks) == 4
    monkeypatch.setattr(split_reader_module, "MAX_SOFT_MASK_BYTES", 4000)
    with Server(tmp_path / "data") as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        # The cache has space for one shard of 31 kB.
        storage = StorageSettings(cache_dir=str(tmp_path / "cache"), cache_gb=4e-5)
        remote = WindowDataset([running.url], [], settings, 0, storage)
        for samples in (SAMPLES[:30], SAMPLES[30:]):
            found = remote.windows(samples, 0).soft_mask.bits
            assert (found == expected[samples - SAMPLES[0]]).all()
            assert len(remote.readers[0]._soft_masks) == 2
        running.shutdown()


def test_two_server_errors_are_retried(folder, server, tmp_path):
    server.respond = lambda name, count: (500, b"") if name == "shard-000002.tar" and count <= 2 else (200, None)
    assert (windows(server.url, tmp_path) == windows(folder, tmp_path)).all()
    assert server.requests["shard-000002.tar"] == 3


def test_a_wrong_shard_is_detected_and_fetched_again(folder, server, tmp_path, caplog):
    good = (folder / "shard-000001.tar").read_bytes()
    bad = [good[:-100], good + b"more", b"x" + good[1:]]
    server.respond = lambda name, count: (200, bad[count - 1] if name == "shard-000001.tar" and count <= 3 else None)
    assert (windows(server.url, tmp_path) == windows(folder, tmp_path)).all()
    assert server.requests["shard-000001.tar"] == 4
    assert [text in caplog.text for text in ("but the manifest gives", "more than the", "SHA-256")] == [True] * 3
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_failed_fetch_names_the_url(server, tmp_path):
    server.respond = lambda name, count: (200, b"nothing" if name == "shard-000001.tar" else None)
    with pytest.raises(DataError, match=r"/data/shard-000001\.tar: could not be fetched in 5 tries \(received 7 bytes"):
        windows(server.url, tmp_path)
    missing = server.url.replace("/data", "/nowhere")
    with pytest.raises(DataError, match=r"/nowhere/manifest\.json: could not be fetched in 5 tries .FileNotFoundError"):
        windows(missing, tmp_path)


def test_a_shard_that_can_not_be_fetched_can_be_skipped(folder, server, tmp_path):
    server.respond = lambda name, count: (404, b"") if name == "shard-000001.tar" else (200, None)
    settings = StorageSettings(on_bad_shard="skip", cache_dir=str(tmp_path / "cache"))
    found = dataset(server.url, settings).windows(SAMPLES, 0)
    is_bad = dataset(folder, settings).locate(SAMPLES).shard == 1
    assert found.num_replaced == is_bad.sum() > 0
    assert (found.ids[~is_bad] == windows(folder, tmp_path)[~is_bad]).all()


def test_a_damaged_copy_in_the_cache_is_fetched_again(folder, server, tmp_path):
    expected = windows(server.url, tmp_path)
    for path in cached(tmp_path):
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
    assert (windows(server.url, tmp_path) == expected).all()
    assert server.requests["shard-000000.tar"] == 2


def test_the_cache_stays_within_its_size(folder, server, tmp_path):
    """With space for two of four shards every window is read, and the files on the disk never exceed the size."""
    size = max(shard.bytes for shard in load_manifest(folder).shards)
    most = 0
    expected = windows(folder, tmp_path)
    data = dataset(server.url, StorageSettings(cache_dir=str(tmp_path / "cache"), cache_gb=2.5 * size / 1e9))
    for sample in SAMPLES[:30]:
        assert (data.windows([sample], 0).ids == expected[sample]).all()
        most = max(most, sum(path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.is_file()))
    assert size < most <= 2.5 * size
    assert len(cached(tmp_path)) == 2


def test_the_least_recently_used_shard_is_evicted_first(folder, tmp_path):
    shards = load_manifest(folder).shards
    cache = ShardCache(tmp_path / "cache", 2 * max(shard.bytes for shard in shards))

    def get(number: int) -> None:
        cache.get(shards[number], lambda out: out.write((folder / shards[number].name).read_bytes()))

    get(0)
    get(1)
    os.utime(cache.path(shards[0]), (1, 1))
    os.utime(cache.path(shards[1]), (2, 2))
    assert cache.touch(shards[0])
    get(2)
    assert [cache.path(shard).exists() for shard in shards] == [True, False, True, False]


def test_a_cache_too_small_for_one_shard_is_refused(server, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.cache_gb 1e-05: no space for shard shard-00000\d\.tar of \d+ bytes"):
        windows(server.url, tmp_path, cache_gb=1e-5)


def test_a_partial_file_of_a_killed_process_is_removed(server, tmp_path):
    (tmp_path / "cache").mkdir()
    abandoned = tmp_path / "cache" / f"{'0' * 64}.tmp"
    abandoned.write_bytes(b"half")
    windows(server.url, tmp_path)
    assert not abandoned.exists()


def _read(url: str, tmp_path: Path, queue) -> None:
    queue.put(windows(url, tmp_path).tobytes())


def test_several_processes_share_one_cache(folder, server, tmp_path):
    """Each shard is fetched by one of them."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_read, args=(server.url, tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert set(found) == {windows(folder, tmp_path).tobytes()}
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat data/{}", "pipe: URLs are not supported; use the s3://, gs://, hf:// or https:// URL"),
        ("gopher://host/data", "can't read gopher URLs; choose one of gs, hf, http, https, s3"),
        ("http:host/data", "can't read http URLs"),
        ("http://host/my data", "a URL can't contain spaces"),
    ],
)
def test_unknown_urls_are_refused(url, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        windows(url, tmp_path)


def test_a_cache_that_cannot_be_created_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.cache_dir .*file/cache: can't be created"):
        dataset(server.url, StorageSettings(cache_dir=str(tmp_path / "file" / "cache")))


def until_listening(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def test_a_folder_behind_pythons_own_web_server_is_read(folder, tmp_path):
    """The server is a process of its own."""
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_listening(port)
            assert (windows(f"http://127.0.0.1:{port}", tmp_path) == windows(folder, tmp_path)).all()
        finally:
            process.kill()


def test_a_wrong_byte_of_the_manifest_is_read_again(folder, server, tmp_path):
    good = (folder / "manifest.json").read_bytes()
    wrong = good.replace(b'"split": "train"', b'"split": "val"', 1)
    server.respond = lambda name, count: (200, wrong if name == "manifest.json" and count == 2 else None)
    assert (
        dataset(server.url, StorageSettings(cache_dir=str(tmp_path / "cache"))).readers[0].manifest.fingerprint
        == load_manifest(folder).fingerprint
    )
    assert wrong != good and server.requests["manifest.json"] == 4


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    """Without installed packages the module can't be found."""
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    for url, module, extra in (("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs")):
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        message = rf"{url}: \w+:// needs {module}; install it with `pip install 'dnabert_rm\[{extra}\]'`"
        with pytest.raises(ConfigError, match=message):
            windows(url, tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/data/{}?X-Amz-Signature=SECRET", "https://host/data/{}?…"),
        ("https://me:SECRET@host/data", "https://host/data"),
        (
            "403, message='Forbidden', url='https://host/x?sig=SECRET'",
            "403, message='Forbidden', url='https://host/x?…'",
        ),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("/data/what?", "/data/what?"),
    ],
)
def test_messages_have_no_secrets_of_urls(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_failed_fetch_does_not_show_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0)
    url = f"http://127.0.0.1:{free_port()}/{{}}?signature=SECRET"
    with pytest.raises(DataError) as caught:
        prepared_folder(url, StorageSettings(cache_dir=str(tmp_path))).manifest()
    assert "manifest.json?…: could not be fetched" in str(caught.value)
    assert "SECRET" not in str(caught.value) + caplog.text and caplog.text


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ConnectionError("reset"), 9),
        (FileNotFoundError("no such key"), object_store.NUM_TRIES),
        (NoCredentialsError(), object_store.NUM_TRIES),
        (type("Refused", (Exception,), {"status": 403})("forbidden"), object_store.NUM_TRIES),
        (type("Busy", (Exception,), {"status": 429})("later"), 9),
    ],
)
def test_only_a_server_that_fails_is_tried_for_longer(monkeypatch: pytest.MonkeyPatch, error, tries: int) -> None:
    """The ninth try would succeed, but only within the time for failing servers."""
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 60)
    monkeypatch.setattr(object_store, "LONGEST_WAIT_SECONDS", 0.01)
    calls = itertools.count(1)

    def work() -> int:
        if (call := next(calls)) < 9:
            raise error
        return call

    if tries == 9:
        assert object_store.with_retries("s3://bucket/x", work) == 9
    else:
        with pytest.raises(DataError, match=f"^s3://bucket/x: could not be fetched in {tries} tries"):
            object_store.with_retries("s3://bucket/x", work)
        assert next(calls) == tries + 1


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/data", "https://no-such-host.invalid/data", "s3://data"])
def test_a_mistyped_host_is_reported_soon_but_not_in_a_run(tmp_path: Path, monkeypatch, url: str) -> None:
    """Two minutes of patience are for servers that have answered before."""
    use(monkeypatch, "http://no-such-host.invalid")
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 3600)
    monkeypatch.setattr(object_store, "_reached", set())
    folder = prepared_folder(url, StorageSettings(cache_dir=str(tmp_path)))
    with pytest.raises(DataError, match=f"could not be fetched in {object_store.NUM_TRIES} tries"):
        folder.manifest()
    assert object_store.with_retries(f"{url}/x", lambda: 1) == 1
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 2)
    monkeypatch.setattr(object_store, "LONGEST_WAIT_SECONDS", 0.1)
    with pytest.raises(DataError) as caught:
        folder.manifest()
    tries = re.search(r"in (\d+) tries", str(caught.value))
    assert tries is not None and int(tries[1]) > object_store.NUM_TRIES
