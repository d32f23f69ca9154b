"""Shards on a real S3 server, through a proxy that injects faults."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from s3_server import FAULTS, FaultyProxy, moto_server, use
from support import random_bases, write_prepared

from data_prep import upload
from data_prep.cli import main
from dnabert_rm.data import object_store
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.utils.errors import ConfigError, DataError

SAMPLES = np.arange(240)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FaultyProxy]:
    """A proxy without faults yet, and an empty bucket `data`."""
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0)
    with FaultyProxy(server) as running:
        use(monkeypatch, running.url)
        files = object_store.file_system("s3://data")
        if files.exists("data"):
            files.rm("data", recursive=True)
        files.mkdir("data")
        running.requests.clear()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight prepared shards."""
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_bases(rng, 3000)] for _ in range(8)])
    return tmp_path / "data"


def dataset(location: str | Path, cache: Path, **storage) -> WindowDataset:
    settings = StorageSettings(cache_dir=str(cache), **storage)
    return WindowDataset([location], [], WindowSettings(window=42, num_streams=4), 0, settings)


def objects(proxy: FaultyProxy) -> set[str]:
    files = object_store.file_system("s3://data")
    files.invalidate_cache()
    return {name.rpartition("/")[2] for name in files.find("data")}


def puts(proxy: FaultyProxy) -> list[str]:
    return [path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT" and path.count("/") > 1]


class RandomFaults:
    """Faults of all kinds in random order. Two to five requests after each fault are answered."""

    def __init__(self, most: int) -> None:
        self.rng, self.left, self.pause = random.Random(0), most, 0

    def __call__(self, method: str, path: str) -> str | None:
        if self.pause or not self.left or method not in ("GET", "HEAD"):
            self.pause = max(0, self.pause - 1)
            return None
        self.left, self.pause = self.left - 1, self.rng.randint(2, 5)
        # The answer to HEAD has no body that could be damaged.
        return self.rng.choice(FAULTS if method == "GET" else ("drop", "slow", "500", "503"))


def test_an_upload_gives_the_windows_of_its_folder(folder, proxy, tmp_path, capsys):
    assert main(["upload", str(folder), "s3://data/a/b/"]) == 0
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert capsys.readouterr().out == (
        f"s3://data/a/b: 10 files with {size:,} bytes match the manifest (10 uploaded, 0 already there)\n"
    )
    assert puts(proxy)[-1] == "manifest.json"
    remote = dataset("s3://data/a/b", tmp_path / "cache")
    assert (remote.windows(SAMPLES, 0).ids == dataset(folder, tmp_path / "none").windows(SAMPLES, 0).ids).all()


def test_a_placeholder_is_for_reading_only(folder, proxy):
    with pytest.raises(ConfigError, match=r"URL s3://data/a/\{\}: can't contain \{\}; pass the URL of a folder"):
        upload.run(folder, "s3://data/a/{}")
    assert not objects(proxy)


def test_a_hundred_faults_change_nothing(folder, proxy, tmp_path, caplog):
    """The cache holds two of eight shards, so that shards are fetched again and again."""
    upload.run(folder, "s3://data/x")
    size = max(shard.bytes for shard in load_manifest(folder).shards)
    expected = dataset(folder, tmp_path / "none").windows(SAMPLES, 0).ids
    data = dataset("s3://data/x", tmp_path / "cache", cache_gb=2.5 * size / 1e9)
    proxy.choose = RandomFaults(100)
    epoch = 0
    while proxy.choose.left:
        for first in range(0, len(SAMPLES), 8):
            found = data.windows(SAMPLES[first : first + 8], 0)
            assert (found.ids == expected[first : first + 8]).all() and found.num_replaced == 0
        epoch += 1
        assert epoch < 40
    assert sum(proxy.faults.values()) == 100 and set(proxy.faults) == set(FAULTS)
    assert "the SHA-256 of the received file does not match" in caplog.text
    assert prepared_folder("s3://data/x", StorageSettings()).manifest().fingerprint == load_manifest(folder).fingerprint


def test_wrong_bytes_of_the_manifest_are_read_again(folder, proxy, caplog):
    upload.run(folder, "s3://data/x")
    faults = iter(["wrong"])
    proxy.choose = lambda method, path: next(faults, None) if method == "GET" else None
    found = prepared_folder("s3://data/x", StorageSettings()).manifest()
    assert found.fingerprint == load_manifest(folder).fingerprint
    assert "two reads of the file gave different bytes" in caplog.text


@pytest.mark.parametrize("fault", ["drop", "503"])
def test_a_server_that_stays_away_is_one_line(fault, folder, proxy, tmp_path):
    """The tries of s3fs and botocore are off. aiohttp repeats a request once if the connection is dropped."""
    upload.run(folder, "s3://data/x")
    proxy.choose = lambda method, path: fault
    proxy.requests.clear()
    with pytest.raises(
        DataError, match=r"^s3://data/x/manifest\.json: could not be fetched in 5 tries \(.*\); check"
    ) as e:
        dataset("s3://data/x", tmp_path / "cache")
    assert "\n" not in str(e.value)
    assert sum(proxy.requests.values()) == (10 if fault == "drop" else 5)


def test_an_interrupted_upload_continues(folder, proxy):
    proxy.choose = lambda method, path: "503" if method == "PUT" and "000005" in path else None
    with pytest.raises(DataError, match=r"shard-000005\.tar: could not be uploaded in 5 tries"):
        upload.run(folder, "s3://data/x")
    assert "manifest.json" not in objects(proxy) and "shard-000004.tar" in objects(proxy)
    proxy.choose = lambda method, path: None
    assert "(5 uploaded, 5 already there)" in upload.run(folder, "s3://data/x")
    proxy.requests.clear()
    assert "(0 uploaded, 10 already there)" in upload.run(folder, "s3://data/x")
    assert not puts(proxy)


def test_files_of_others_are_only_replaced_with_overwrite(folder, proxy):
    """A folder without a manifest, such as another tool's shards, or another upload that has not ended."""
    files = object_store.file_system("s3://data")
    files.pipe_file("data/x/shard-000002.tar", b"theirs")
    with pytest.raises(ConfigError, match=r"x/shard-000002\.tar: another file is there already; .* --overwrite"):
        upload.run(folder, "s3://data/x")
    assert files.cat_file("data/x/shard-000002.tar") == b"theirs"
    assert "(8 uploaded, 2 already there)" in upload.run(folder, "s3://data/x", overwrite=True)


def test_a_damaged_object_is_uploaded_again(folder, proxy):
    upload.run(folder, "s3://data/x")
    name = "data/x/shard-000003.tar"
    files = object_store.file_system("s3://data")
    content = files.cat_file(name)
    files.pipe_file(name, content[:-1] + b"x")
    assert "(1 uploaded, 9 already there)" in upload.run(folder, "s3://data/x")
    files.invalidate_cache()
    assert files.cat_file(name) == content


def test_faults_during_an_upload_are_repaired(folder, proxy):
    """Bytes that change on the way to the server, too."""
    rng = random.Random(0)
    pause = [0]

    def choose(method: str, path: str) -> str | None:
        pause[0] = max(0, pause[0] - 1)
        if pause[0]:
            return None
        pause[0] = 4
        return rng.choice(["drop", "500", "503"])

    proxy.choose = choose
    assert "10 files" in upload.run(folder, "s3://data/x")
    proxy.choose = lambda method, path: None
    assert sum(proxy.faults.values()) > 5
    assert "(0 uploaded, 10 already there)" in upload.run(folder, "s3://data/x")


def test_another_data_set_is_replaced_only_with_overwrite(folder, proxy, tmp_path, capsys):
    upload.run(folder, "s3://data/x")
    rng = np.random.default_rng(1)
    write_prepared(tmp_path / "other", [[random_bases(rng, 2000)]])
    assert main(["upload", str(tmp_path / "other"), "s3://data/x"]) == 2
    assert capsys.readouterr().err.endswith(
        "s3://data/x: holds another data set; choose another URL or pass --overwrite\n"
    )
    assert len(objects(proxy)) == 10
    assert main(["upload", str(tmp_path / "other"), "s3://data/x", "--overwrite"]) == 0
    assert objects(proxy) == {"columns.npz", "manifest.json", "shard-000000.tar"}


def test_a_folder_that_differs_from_its_manifest_is_not_uploaded(folder, proxy):
    path = folder / "shard-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-000001\.tar: its checksum does not match the manifest"):
        upload.run(folder, "s3://data/x")
    path.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: is missing, or its size differs"):
        upload.run(folder, "s3://data/x")
    assert "manifest.json" not in objects(proxy)


def test_several_threads_fetch_at_once(folder, proxy, tmp_path):
    upload.run(folder, "s3://data/x")
    expected = dataset(folder, tmp_path / "none").windows(SAMPLES, 0).ids
    found: list[bool] = []

    def read(number: int) -> None:
        data = dataset("s3://data/x", tmp_path / f"cache{number}")
        found.append(bool((data.windows(SAMPLES, 0).ids == expected).all()))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_targets_that_cannot_be_written_are_refused(folder):
    with pytest.raises(ConfigError, match="can't write to https URLs; choose one of gs, hf, s3"):
        upload.run(folder, "https://host/data")
