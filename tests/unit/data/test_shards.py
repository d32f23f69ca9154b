"""Damaged and malicious shards: no code in them runs, and the error names the shard."""

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
from dnabert_rm.data.manifest import load_manifest, write_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.data.split_reader import SplitReader
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
    """Read enough windows to open every shard."""
    WindowDataset([folder], [], WindowSettings(window=42, num_streams=4), 0).windows(np.arange(60), 0)


def rewrite(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Write a tar and update its size and checksum in the manifest."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    update_manifest(path)


def update_manifest(path: Path) -> None:
    """Update a shard's size and checksum in the manifest."""
    manifest = load_manifest(path.parent)
    shards = [
        dataclasses.replace(shard, bytes=path.stat().st_size, sha256=sha256_of_file(path))
        if shard.name == path.name
        else shard
        for shard in manifest.shards
    ]
    write_manifest(path.parent, dataclasses.replace(manifest, shards=shards))


def npy(array: np.ndarray) -> bytes:
    """Return a .npy file, pickled if the array needs it."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def record(**changes) -> bytes:
    content = {"genome": "g", "contig": "c", "start": 0, "end": 905, "split": "train", **changes}
    return json.dumps(content).encode()


def segment_members(arrays: list[np.ndarray], content: bytes | None = None) -> list[tuple[str, bytes]]:
    """Return the two members of each segment, all with the same JSON."""
    members = []
    for number, array in enumerate(arrays):
        members += [(f"{number}.ids.npy", npy(array)), (f"{number}.json", content or record())]
    return members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda p: [("0.ids.npy", npy(np.array([Bomb(p)], dtype=object))), ("0.json", record())], "holds object"),
        (
            lambda p: [("../0.ids.npy", npy(np.ones(900, np.uint16))), ("../0.json", record())],
            "is neither KEY.ids.npy nor KEY",
        ),
        (lambda p: [("/tmp/0.ids.npy", npy(np.ones(900, np.uint16)))], "is neither KEY.ids.npy nor KEY"),
        (lambda p: [("0.ids.pyd", pickle.dumps(Bomb(p)))], "is neither KEY.ids.npy nor KEY"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.int64))), ("0.json", record())], "holds int64"),
        (lambda p: [("0.ids.npy", npy(np.ones((9, 100), np.uint16))), ("0.json", record())], r"shape \(9, 100\)"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.uint16))[:-9]), ("0.json", record())], "is truncated"),
        (lambda p: [("0.ids.npy", b"nothing"), ("0.json", record())], "can't be read as a shard"),
        (lambda p: [("0.ids.npy", npy(np.ones(900, np.uint16))), ("1.json", record())], "KEY.ids.npy and KEY.json"),
        (lambda p: [("0.ids.npy", npy(np.full(900, 4101, np.uint16))), ("0.json", record())], "do not match the man"),
    ],
)
def test_a_malicious_shard_is_refused_without_effect(folder, tmp_path, members, message):
    """Even if the manifest has its checksum, no pickle runs and no file is written."""
    bomb = tmp_path / "exploded"
    rewrite(folder / "shard-000000.tar", members(bomb))
    with pytest.raises(DataError, match=message) as caught:
        read_all(folder)
    assert "shard-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not bomb.exists()


def test_ids_beyond_the_vocabulary_are_refused(folder):
    """On a GPU they would abort the process without an error message."""
    lengths = load_manifest(folder).shards[0].segments
    arrays = [np.full(length, 5 + number * 4096, np.uint16) for number, length in enumerate(lengths)]
    rewrite(folder / "shard-000000.tar", segment_members(arrays))
    with pytest.raises(DataError, match=r"segment 1 has the id 4101, but the vocabulary ends at 4100"):
        read_all(folder)


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"no json", b'{"genome": 1, "contig": 2, "start": "x", "end": 3}'])
def test_an_invalid_json_member_is_refused(folder, content):
    shard = load_manifest(folder).shards[0]
    members = segment_members([np.full(length, 5, np.uint16) for length in shard.segments], content)
    rewrite(folder / shard.name, members)
    with pytest.raises(DataError, match=r"shard-000000\.tar: segment 1 has no valid KEY\.json"):
        SplitReader(folder, "train").coordinates(0, 1, 0, 10)


@pytest.mark.parametrize(
    "ranges", [None, 3, "soft", [1, 2], [[1, 2, 3]], [[2, 1]], [[5, 9], [3, 4]], [[-1, 4]], [[0, 906]], [[0.0, 1.0]]]
)
def test_an_invalid_soft_mask_is_refused(folder, ranges):
    shard = load_manifest(folder).shards[0]
    members = segment_members([np.full(length, 5, np.uint16) for length in shard.segments])
    number = shard.segments.tolist().index(900 - 5)
    members[2 * number + 1] = (members[2 * number + 1][0], record(soft_masked=ranges))
    rewrite(folder / shard.name, members)
    with pytest.raises(DataError, match=rf"shard-000000\.tar: segment {number} has no valid soft_masked in KEY\.json"):
        SplitReader(folder, "train").soft_mask(0, number, 0, 1)


def test_an_odd_size_is_refused(folder):
    """Half a token at the end of the file."""
    shard = load_manifest(folder).shards[0]
    members = segment_members([np.full(length, 5, np.uint16) for length in shard.segments])
    rewrite(folder / shard.name, members)
    with open(folder / shard.name, "ab") as stream:
        stream.write(b"x")
    update_manifest(folder / shard.name)
    with pytest.raises(DataError, match=r"shard-000000\.tar: can't be read as a shard"):
        read_all(folder)


def test_a_file_that_is_no_tar_is_refused(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(b"no tar" * 2000)
    update_manifest(path)
    with pytest.raises(DataError, match="can't be read as a shard") as caught:
        SplitReader(folder, "train").is_usable(0)
    assert "\n" not in str(caught.value)


def test_extended_tar_headers_are_skipped(folder):
    """Other writers store times with fractions of a second, which need an extended header."""
    path = folder / "shard-000000.tar"
    lengths = load_manifest(folder).shards[0].segments
    members = segment_members([np.full(length, 5, np.uint16) for length in lengths])
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
    assert b"mtime=1.5" in path.read_bytes()
    update_manifest(path)
    read_all(folder)
    assert [len(ids) for _, _, ids in read_segments(path)] == lengths.tolist()
