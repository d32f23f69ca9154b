"""Reading windows back, and what damaged shards do: fail with a line that names them, or be skipped."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, write_prepared

from dnabert_rm.data import split_reader as reader_module
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.storage import StorageSettings
from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import ConfigError, DataError

SKIP = StorageSettings(on_bad_shard="skip")


@pytest.fixture
def sequences() -> list[list[str]]:
    """Three shards of two or three segments."""
    rng = np.random.default_rng(0)
    return [[random_bases(rng, size) for size in sizes] for sizes in ((900, 700), (800, 650, 400), (1200, 300))]


@pytest.fixture
def folder(tmp_path, sequences) -> Path:
    """The shards, prepared."""
    write_prepared(tmp_path / "data", sequences)
    return tmp_path / "data"


def dataset(folder: Path, storage: StorageSettings | None = None, **settings) -> WindowDataset:
    """Windows of 40 tokens."""
    return WindowDataset([folder], [], WindowSettings(**{"window": 42, "num_streams": 4, **settings}), 0, storage)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("strand", ["forward", "random", "both"])
def test_windows_are_the_sequences_at_their_places(folder, sequences, overlap, strand):
    windows = dataset(folder, overlap=overlap, strand=strand)
    samples = np.arange(windows.num_windows)
    found, flat = windows.windows(samples, 0), [sequence for shard in sequences for sequence in shard]
    for ids, place in zip(found.ids, windows.coordinates(samples, 0), strict=True):
        bases = flat[int(place["contig"].removeprefix("contig"))][place["start"] : place["end"]]
        if place["strand"] == "-":
            bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
        assert ids.tolist() == kmer.encode(bases, 6)[:: 1 if overlap else 6].tolist()
        assert len(ids) == 40
    assert found.num_replaced == 0
    assert {place["strand"] for place in windows.coordinates(samples, 0)} == (
        {"+"} if strand == "forward" else {"+", "-"}
    )


def test_random_lengths_are_those_of_the_step(folder):
    windows, plain = dataset(folder, lengths="random"), dataset(folder)
    samples, sizes = np.arange(20), []
    for step in range(200):
        found, coordinates = windows.windows(samples, step), windows.coordinates(samples, step)
        sizes.append(found.ids.shape[1])
        assert found.ids.shape == (20, windows.tokens_of_step(step))
        assert {place["end"] - place["start"] for place in coordinates} == {sizes[-1] + 5}
        full = plain.coordinates(samples, step)
        assert all(
            outer["contig"] == inner["contig"] and outer["start"] <= inner["start"] and inner["end"] <= outer["end"]
            for outer, inner in zip(full, coordinates, strict=True)
        )
        again = dataset(folder, lengths="random").windows(samples[3:5], step).ids
        assert (again == found.ids[3:5]).all()
    assert 0.4 < np.mean(np.array(sizes) == 40) < 0.65
    assert min(sizes) == 5
    assert len(set(sizes)) > 25


def test_shards_are_opened_again_when_many_are_mapped(folder, monkeypatch):
    expected = dataset(folder).windows(np.arange(60), 0).ids
    monkeypatch.setattr(reader_module, "MAX_MAPPED", 1)
    windows = dataset(folder)
    assert (windows.windows(np.arange(60), 0).ids == expected).all()
    assert len(windows.readers[0]._mapped) == 1
    assert (pickle.loads(pickle.dumps(windows)).windows(np.arange(60), 0).ids == expected).all()


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5000)


DAMAGE = {
    "flipped": (flip_byte, r"shard-000001\.tar: is damaged \(its SHA-256 is not the manifest's\)"),
    "truncated": (truncate, r"shard-000001\.tar: has \d+ bytes, the manifest says \d+; copy or build"),
    "missing": (Path.unlink, r"shard-000001\.tar: no such shard, but the manifest names it; copy or build"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_names_itself(folder, kind):
    """At the start where a look at the folder is enough, else when it is first read."""
    damage, message = DAMAGE[kind]
    damage(folder / "shard-000001.tar")
    with pytest.raises(DataError, match=message) as caught:
        opened = dataset(folder)
        assert kind == "flipped", "must be seen before the run"
        opened.windows(np.arange(60), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_that_goes_bad_in_a_run_names_itself(folder, kind):
    windows = dataset(folder)
    DAMAGE[kind][0](folder / "shard-000001.tar")
    with pytest.raises(DataError, match=DAMAGE[kind][1]):
        windows.windows(np.arange(60), 0)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_can_be_skipped(folder, kind, caplog):
    """Its windows are replaced by others, the same whoever asks; it is logged once, and counted."""
    expected = dataset(folder).windows(np.arange(60), 0).ids
    lost = dataset(folder).locate(np.arange(60)).shard == 1
    DAMAGE[kind][0](folder / "shard-000001.tar")
    windows = dataset(folder, SKIP)
    with caplog.at_level(logging.WARNING):
        found = windows.windows(np.arange(60), 0)
        parts = [windows.windows(np.arange(first, first + 6), 0) for first in range(0, 60, 6)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "shard-000001.tar" in caplog.text
    assert "skipped (--on-bad-shard skip)" in caplog.text
    assert found.num_replaced == lost.sum() > 10
    assert sum(part.num_replaced for part in parts) == found.num_replaced
    assert (np.concatenate([part.ids for part in parts]) == found.ids).all()
    assert (found.ids[~lost] == expected[~lost]).all()
    assert (found.ids[lost] != expected[lost]).any(axis=1).all()
    coordinates = windows.coordinates(np.arange(60), 0)
    assert not {"contig2", "contig3", "contig4"} & {place["contig"] for place in coordinates}
    assert len({tuple(ids) for ids in found.ids[lost].tolist()}) > lost.sum() // 2


def test_skipping_ends_where_nothing_is_left(folder):
    for path in folder.glob("*.tar"):
        flip_byte(path)
    with pytest.raises(DataError, match="hardly any shard can be read"):
        dataset(folder, SKIP).windows(np.arange(4), 0)


def test_settings_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="window 2 must hold"):
        dataset(folder, window=2)
    with pytest.raises(ConfigError, match=r"data\.lengths 'long' must be one of full, random"):
        dataset(folder, lengths="long")
    with pytest.raises(ConfigError, match=r"data\.on_bad_shard 'hide' must be one of fail, skip"):
        dataset(folder, StorageSettings(on_bad_shard="hide"))
    with pytest.raises(DataError, match="no shard of split 'test'"):
        dataset(folder, split="test")
    write_prepared(tmp_path / "other", [["ACGT" * 100]], k=5)
    with pytest.raises(ConfigError, match="have different tokenizers"):
        WindowDataset([folder, tmp_path / "other"], [], WindowSettings(window=42), 0)
    with pytest.raises(ConfigError, match=r"data\.remainder drop"):
        WindowDataset([folder, folder], [], WindowSettings(window=42, drop_to_multiple_of=4), 0)


def test_two_folders_have_both_fingerprints_and_sources(folder, tmp_path):
    write_prepared(tmp_path / "other", [["ACGTTGCA" * 200]])
    both = WindowDataset([folder, tmp_path / "other"], [3, 1], WindowSettings(window=42), 0)
    assert both.fingerprint == "+".join(load_manifest(path).fingerprint for path in (folder, tmp_path / "other"))
    sources = both.locate(np.arange(4096)).source
    assert (sources == 0).sum() == 3072
    assert both.num_windows == sum(order.num_windows for order in both.samplers)
