"""Hostile shards: whatever a tar or an array says, nothing runs, and the error names the shard."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, write_prepared

from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import MANIFEST_NAME, load_manifest
from dnabert_rm.data.split_reader import ShardReader
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import sha256_of_file


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two prepared shards."""
    rng = np.random.default_rng(0)
    sizes = ((900, 700), (800, 650))
    write_prepared(tmp_path / "data", [[random_bases(rng, size) for size in shard] for shard in sizes])
    return tmp_path / "data"


def read_all(folder: Path) -> None:
    """Read enough windows to meet every shard."""
    WindowDataset([folder], [], WindowSettings(window=42, num_streams=4), 0).windows(np.arange(60), 0)


def rewrite(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Write a tar, and make the manifest agree with its size and checksum."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    vouch_for(path)


def vouch_for(path: Path) -> None:
    """Make the manifest agree with a shard's size and checksum."""
    manifest = load_manifest(path.parent)
    shards = [
        dataclasses.replace(shard, bytes=path.stat().st_size, sha256=sha256_of_file(path))
        if shard.name == path.name
        else shard
        for shard in manifest.shards
    ]
    (path.parent / MANIFEST_NAME).write_text(dataclasses.replace(manifest, shards=shards).to_json())


def npy(array: np.ndarray) -> bytes:
    """A .npy file, pickled where the array needs it."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def record(**changes) -> bytes:
    content = {"genome": "g", "contig": "c", "start": 0, "end": 905, "split": "train", **changes}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda p: [("0.ids.npy", npy(np.array([Bomb(p)], dtype=object))), ("0.json", record())], "holds object"),
        (lambda p: [("../0.ids.npy", npy(np.ones(900, np.uint16))), ("../0.json", record())], "no plain KEY"),
        (lambda p: [("/tmp/0.ids.npy", npy(np.ones(900, np.uint16)))], "no plain KEY"),
        (lambda p: [("0.ids.pyd", pickle.dumps(Bomb(p)))], "no plain KEY"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.int64))), ("0.json", record())], "holds int64"),
        (lambda p: [("0.ids.npy", npy(np.ones((9, 100), np.uint16))), ("0.json", record())], r"shape \(9, 100\)"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.uint16))[:-9]), ("0.json", record())], "is cut short"),
        (lambda p: [("0.ids.npy", b"nothing"), ("0.json", record())], "can't be read as a shard"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.uint16))), ("1.json", record())], "one KEY.json"),
        (lambda p: [("0.ids.npy", npy(np.full(900, 4101, np.uint16))), ("0.json", record())], "not those of the man"),
    ],
)
def test_a_hostile_shard_does_nothing(folder, tmp_path, members, message):
    """Even with a manifest that vouches for it: no pickle, no path, no surprise."""
    bomb = tmp_path / "exploded"
    rewrite(folder / "shard-000000.tar", members(bomb))
    with pytest.raises(DataError, match=message) as caught:
        read_all(folder)
    assert "shard-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not bomb.exists()


def test_ids_beyond_the_vocabulary_are_refused(folder):
    """On a GPU they would end the process without a word."""
    lengths = load_manifest(folder).shards[0].segments
    arrays = [np.full(length, 5 + number * 4096, np.uint16) for number, length in enumerate(lengths)]
    members = [(f"{number}.{kind}", data) for number, array in enumerate(arrays)
               for kind, data in (("ids.npy", npy(array)), ("json", record()))]  # fmt: skip
    rewrite(folder / "shard-000000.tar", members)
    with pytest.raises(DataError, match=r"segment 1 has the id 4101, the vocabulary ends at 4100"):
        read_all(folder)


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"no json", b'{"genome": 1, "contig": 2, "start": "x", "end": 3}'])
def test_a_record_that_is_none_is_refused(folder, content):
    shard = load_manifest(folder).shards[0]
    members = [(f"{number}.{kind}", data) for number, length in enumerate(shard.segments)
               for kind, data in (("ids.npy", npy(np.full(length, 5, np.uint16))), ("json", content))]  # fmt: skip
    rewrite(folder / shard.name, members)
    with pytest.raises(DataError, match=r"shard-000000\.tar: segment 1 has no proper KEY\.json"):
        ShardReader(folder, "train").place(0, 1, 0, 10)


def test_an_odd_size_is_refused(folder):
    """Half a token at the end of the file."""
    shard = load_manifest(folder).shards[0]
    members = [(f"{number}.{kind}", data) for number, length in enumerate(shard.segments)
               for kind, data in (("ids.npy", npy(np.full(length, 5, np.uint16))), ("json", record()))]  # fmt: skip
    rewrite(folder / shard.name, members)
    with open(folder / shard.name, "ab") as stream:
        stream.write(b"x")
    vouch_for(folder / shard.name)
    with pytest.raises(DataError, match=r"shard-000000\.tar: can't be read as a shard"):
        read_all(folder)


def test_a_file_that_is_no_tar_is_refused(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(b"no tar" * 2000)
    vouch_for(path)
    with pytest.raises(DataError, match="can't be read as a shard") as caught:
        ShardReader(folder, "train").is_usable(0)
    assert "\n" not in str(caught.value)
