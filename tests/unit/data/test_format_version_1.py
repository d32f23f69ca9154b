"""Folders of format version 1, one segment per pair of members and no columns, give the same windows as version 2."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.parallel import open_executor
from data_prep.verify import find_faults
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_members, read_segments
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.utils.errors import DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same data in version 2, as `build` writes it, and in version 1."""
    folder = tmp_path_factory.mktemp("versions")
    rng = np.random.default_rng(0)
    with open(folder / "g.fa", "w") as fasta:
        for number in range(300):
            letters = rng.choice(list("ACGTacgt") + ["N"] * (number % 9 == 0), int(rng.integers(60, 900)))
            print(f">contig{number}\n{''.join(letters)}", file=fasta)
        print(f">long\n{''.join(rng.choice(list('ACGT'), 90_000))}", file=fasta)
    words = [folder / "g.fa", "--out", folder / "two", "--segment-tokens", 40_000, "--shard-tokens", 60_000]
    assert (
        main(["build", *map(str, words), "--val-fraction", "0.1", "--block-bases", "2000", "--record-soft-mask"]) == 0
    )
    write_version_1(folder / "two", folder / "one")
    return folder / "one", folder / "two"


def write_version_1(source: Path, target: Path) -> None:
    """Write the data of a folder as the first version of `build` did."""
    target.mkdir()
    manifest = load_manifest(source)
    shards = []
    for shard in manifest.shards:
        path = target / shard.name
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, meta, ids in read_segments(source / shard.name):
                array = io.BytesIO()
                np.save(array, ids)
                fields = ("genome", "contig", "start", "end", "split", "soft_masked")
                text = json.dumps({name: meta[name] for name in fields}, sort_keys=True)
                for name, data in ((f"{key}.ids.npy", array.getvalue()), (f"{key}.json", text.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({**shard.to_json(), "bytes": path.stat().st_size, "sha256": digest})
    content = {
        "format": "dnabert_rm-shards",
        "format_version": 1,
        "tokenizer": dataclasses.asdict(manifest.tokenizer),
        "sources": [dataclasses.asdict(source) for source in manifest.sources],
        "contigs": [dataclasses.asdict(contig) for contig in manifest.contigs],
        "shards": shards,
        "options": manifest.options,
    }
    (target / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_short_segments_share_members_and_nothing_else_differs(folders: tuple[Path, Path]) -> None:
    one, two = (load_manifest(folder) for folder in folders)
    assert list(one.contigs) == list(two.contigs) and one.options == two.options
    num_members = 0
    for old, new in zip(one.shards, two.shards, strict=True):
        assert old.segments.tolist() == new.segments.tolist() and old.split == new.split
        members = list(read_members(folders[1] / new.name))
        num_members += len(members)
        found = [list(read_segments(folder / shard.name)) for folder, shard in zip(folders, (old, new), strict=True)]
        for (key, meta, ids), (new_key, new_meta, new_ids) in zip(*found, strict=True):
            assert key == new_key and np.array_equal(ids, new_ids)
            assert meta == {name: value for name, value in new_meta.items() if name != "tokens"}
    assert num_members < sum(len(shard.segments) for shard in two.shards) / 10


@pytest.mark.parametrize("strand", ["forward", "random"])
def test_windows_and_soft_masks_are_equal(folders: tuple[Path, Path], strand: str) -> None:
    settings = WindowSettings(window=42, num_streams=8, strand=strand, soft_mask=True)
    old, new = (WindowDataset([folder], [], settings, 7).windows(np.arange(2000), 0) for folder in folders)
    assert np.array_equal(old.ids, new.ids)
    assert old.soft_mask is not None and new.soft_mask is not None
    assert np.array_equal(old.soft_mask.bits, new.soft_mask.bits)
    assert np.array_equal(old.soft_mask.first_bit, new.soft_mask.first_bit)
    readers = [SplitReader(folder, "train") for folder in folders]
    for shard, lengths in enumerate(readers[0].shard_segments):
        for segment in range(0, len(lengths), 7):
            assert len({str(reader.coordinates(shard, segment, 3, 20)) for reader in readers}) == 1


def test_both_versions_are_verified(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with open_executor(1) as executor:
        assert executor is not None
        for folder in folders:
            assert list(find_faults(load_manifest(folder), folder, executor)) == []


def test_the_fingerprint_of_version_1_is_that_of_earlier_releases(folders: tuple[Path, Path]) -> None:
    """It was the SHA-256 of the text that the manifest's content gives, which is the text of the file."""
    text = (folders[0] / "manifest.json").read_text()
    again = json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    assert load_manifest(folders[0]).fingerprint == hashlib.sha256(again.encode()).hexdigest()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.pop("contigs"), "contigs"),
        (lambda c: c["contigs"][0].update(length="7"), "not an integer"),
        (lambda c: c["contigs"][0].update(more=1), "more"),
        (lambda c: c["shards"][0].update(segments=[0]), "segment length"),
        (lambda c: c["shards"][0].update(segments=[1.5]), "segment length"),
        (lambda c: c["shards"][0].update(segments=3), "not a valid manifest"),
    ],
)
def test_an_invalid_manifest_of_version_1_names_the_fault(folders: tuple[Path, Path], tmp_path, edit, reason) -> None:
    content = json.loads((folders[0] / "manifest.json").read_text())
    edit(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=reason):
        load_manifest(tmp_path)


FLAGS = ["--segment-tokens", "40000", "--shard-tokens", "60000", "--val-fraction", "0.1", "--block-bases", "2000"]


def test_building_a_finished_folder_of_version_1_again_changes_nothing(folders, tmp_path, capsys) -> None:
    """A job may run `build` before each `pretrain`. With another fingerprint, its checkpoints could not be resumed."""
    shutil.copytree(folders[0], tmp_path / "one")
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    words = ["build", str(folders[0].parent / "g.fa"), "--out", str(tmp_path / "one"), *FLAGS, "--record-soft-mask"]
    assert main(words) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
    assert load_manifest(folders[0]).fingerprint in capsys.readouterr().out
    name = load_manifest(folders[0]).shards[0].name
    (tmp_path / "one" / name).unlink()
    assert main(words) == 2
    assert f"{name}: is missing or damaged, and format version 1 is no longer written" in capsys.readouterr().err
    assert (tmp_path / "one" / "manifest.json").read_bytes() == before["manifest.json"]


def test_an_unfinished_build_of_version_1_is_not_continued(folders, tmp_path, capsys) -> None:
    """Its shards would be mixed with those of version 2."""
    manifest = load_manifest(folders[0])
    (tmp_path / "one" / ".build").mkdir(parents=True)
    plan = {"options": manifest.options, "sources": [dataclasses.asdict(source) for source in manifest.sources]}
    (tmp_path / "one" / ".build" / "plan.json").write_text(json.dumps(plan))
    words = ["build", str(folders[0].parent / "g.fa"), "--out", str(tmp_path / "one"), *FLAGS, "--record-soft-mask"]
    assert main(words) == 2
    assert "holds another build (it was begun by an earlier version" in capsys.readouterr().err
