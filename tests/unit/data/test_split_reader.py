"""Windows are read back exactly; a damaged shard fails with one line that names it, or is skipped."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, random_repeats, write_prepared

from dnabert_rm.data import split_reader as split_reader_module
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import TokenizerInfo, load_manifest, write_manifest
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
    """The prepared folder of these sequences."""
    write_prepared(tmp_path / "data", sequences)
    return tmp_path / "data"


def dataset(folder: Path, storage: StorageSettings | None = None, **settings) -> WindowDataset:
    """Return a dataset of windows of 40 tokens."""
    return WindowDataset([folder], [], WindowSettings(**{"window": 42, "num_streams": 4, **settings}), 0, storage)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("strand", ["forward", "random", "both"])
def test_windows_are_the_sequences_at_their_coordinates(folder, sequences, overlap, strand):
    windows = dataset(folder, overlap=overlap, strand=strand)
    samples = np.arange(windows.num_windows)
    found, flat = windows.windows(samples, 0), [sequence for shard in sequences for sequence in shard]
    for ids, where in zip(found.ids, windows.coordinates(samples, 0), strict=True):
        bases = flat[int(where["contig"].removeprefix("contig"))][where["start"] : where["end"]]
        if where["strand"] == "-":
            bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
        assert ids.tolist() == kmer.encode(bases, 6)[:: 1 if overlap else 6].tolist()
        assert len(ids) == 40
    assert found.num_replaced == 0
    assert {where["strand"] for where in windows.coordinates(samples, 0)} == (
        {"+"} if strand == "forward" else {"+", "-"}
    )


def test_random_lengths_are_the_same_for_a_whole_step(folder):
    windows, plain = dataset(folder, lengths="random"), dataset(folder)
    samples, sizes = np.arange(20), []
    for step in range(200):
        found, coordinates = windows.windows(samples, step), windows.coordinates(samples, step)
        sizes.append(found.ids.shape[1])
        assert found.ids.shape == (20, windows.tokens_of_step(step))
        assert {where["end"] - where["start"] for where in coordinates} == {sizes[-1] + 5}
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


def test_unmapped_shards_are_mapped_again_when_needed(folder, monkeypatch):
    expected = dataset(folder).windows(np.arange(60), 0).ids
    monkeypatch.setattr(split_reader_module, "MAX_MAPPED", 1)
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
    "flipped": (flip_byte, r"shard-000001\.tar: is damaged \(its SHA-256 does not match the manifest\)"),
    "truncated": (truncate, r"shard-000001\.tar: has \d+ bytes, but the manifest gives \d+; copy or build"),
    "missing": (Path.unlink, r"shard-000001\.tar: is listed in the manifest, but the file is missing; copy or build"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_is_named(folder, kind):
    """At the start if its size or absence shows it, otherwise when it is first read."""
    damage, message = DAMAGE[kind]
    damage(folder / "shard-000001.tar")
    with pytest.raises(DataError, match=message) as caught:
        opened = dataset(folder)
        assert kind == "flipped", "must be found before the run"
        opened.windows(np.arange(60), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_damaged_during_a_run_is_named(folder, kind):
    windows = dataset(folder)
    DAMAGE[kind][0](folder / "shard-000001.tar")
    with pytest.raises(DataError, match=DAMAGE[kind][1]):
        windows.windows(np.arange(60), 0)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_can_be_skipped(folder, kind, caplog):
    """Its windows are replaced, in the same way for any batch; it is logged once, and the windows are counted."""
    expected = dataset(folder).windows(np.arange(60), 0).ids
    is_bad = dataset(folder).locate(np.arange(60)).shard == 1
    DAMAGE[kind][0](folder / "shard-000001.tar")
    windows = dataset(folder, SKIP)
    with caplog.at_level(logging.WARNING):
        found = windows.windows(np.arange(60), 0)
        parts = [windows.windows(np.arange(first, first + 6), 0) for first in range(0, 60, 6)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "shard-000001.tar" in caplog.text
    assert "skipped (--on-bad-shard skip)" in caplog.text
    assert found.num_replaced == is_bad.sum() > 10
    assert sum(part.num_replaced for part in parts) == found.num_replaced
    assert (np.concatenate([part.ids for part in parts]) == found.ids).all()
    assert (found.ids[~is_bad] == expected[~is_bad]).all()
    assert (found.ids[is_bad] != expected[is_bad]).any(axis=1).all()
    coordinates = windows.coordinates(np.arange(60), 0)
    assert not {"contig2", "contig3", "contig4"} & {where["contig"] for where in coordinates}
    assert len({tuple(ids) for ids in found.ids[is_bad].tolist()}) > is_bad.sum() // 2


def test_skipping_fails_if_no_shard_is_left(folder):
    for path in folder.glob("*.tar"):
        flip_byte(path)
    with pytest.raises(DataError, match="hardly any shard can be read"):
        dataset(folder, SKIP).windows(np.arange(4), 0)


def test_settings_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="window 2 can't hold"):
        dataset(folder, window=2)
    with pytest.raises(ConfigError, match=r"data\.lengths 'long' must be one of full, random"):
        dataset(folder, lengths="long")
    with pytest.raises(ConfigError, match=r"data\.on_bad_shard 'hide' must be one of fail, skip"):
        dataset(folder, StorageSettings(on_bad_shard="hide"))
    with pytest.raises(DataError, match="no shards for split 'test'"):
        dataset(folder, split="test")
    write_prepared(tmp_path / "other", [["ACGT" * 100]], k=5)
    with pytest.raises(ConfigError, match="have different tokenizers"):
        WindowDataset([folder, tmp_path / "other"], [], WindowSettings(window=42), 0)
    with pytest.raises(ConfigError, match=r"data\.remainder 'drop'"):
        WindowDataset([folder, folder], [], WindowSettings(window=42, drop_to_multiple_of=4), 0)


def test_data_without_soft_masks_are_refused(folder, tmp_path):
    with pytest.raises(
        DataError, match=r"data: has no record of soft-masked bases.*build the data again with --record"
    ):
        dataset(folder, soft_mask=True)
    write_prepared(tmp_path / "soft", [["ACGTacgt" * 200]], soft_mask=True)
    with pytest.raises(DataError, match=r"/data: has no record of soft-masked bases"):
        WindowDataset([tmp_path / "soft", folder], [], WindowSettings(window=42, soft_mask=True), 0)


def test_soft_masks_of_bpe_shards_are_refused(tmp_path):
    manifest = write_prepared(tmp_path / "soft", [["ACGTacgt" * 200]], soft_mask=True)
    bpe = dataclasses.replace(manifest, tokenizer=TokenizerInfo("bpe", 4101, base_order=None, model="bpe.model"))
    write_manifest(tmp_path / "soft", bpe)
    with pytest.raises(ConfigError, match=r"data\.repeat_weight: needs k-mers; leave data\.repeat_weight unset"):
        dataset(tmp_path / "soft", soft_mask=True)


def test_a_shard_deleted_after_it_was_opened_keeps_its_soft_masks(tmp_path):
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "soft", [[random_repeats(rng, 900), random_repeats(rng, 900)]], soft_mask=True)
    samples, expected = np.arange(30), dataset(tmp_path / "soft", soft_mask=True).windows(np.arange(30), 0).soft_mask
    windows = dataset(tmp_path / "soft", soft_mask=True)
    windows.readers[0].is_usable(0)
    (tmp_path / "soft" / "shard-000000.tar").unlink()
    assert (windows.windows(samples, 0).soft_mask.bits == expected.bits).all()


def test_two_folders_have_both_fingerprints_and_sources(folder, tmp_path):
    write_prepared(tmp_path / "other", [["ACGTTGCA" * 200]])
    both = WindowDataset([folder, tmp_path / "other"], [3, 1], WindowSettings(window=42), 0)
    assert both.fingerprint == "+".join(load_manifest(path).fingerprint for path in (folder, tmp_path / "other"))
    sources = both.locate(np.arange(4096)).source
    assert (sources == 0).sum() == 3072
    assert both.num_windows == sum(order.num_windows for order in both.samplers)
