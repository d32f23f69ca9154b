"""`labels --prepared`: dev and test are what pretraining held out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from labelled_windows import Bed, run, write_genome, write_peaks

from data_prep.cli import main
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.utils.errors import ConfigError

BUILD = ["--k", "3", "--min-tokens", "32", "--block-bases", "5000", "--val-fraction", "0.2", "--test-fraction", "0.2"]


@pytest.fixture
def peaks(tmp_path: Path) -> list[Bed]:
    return write_peaks(tmp_path)


def build(folder: Path, *flags: str) -> Path:
    out = folder / "prepared"
    assert main(["build", str(folder / "genome.fa"), *flags, "--out", str(out)]) == 0
    return out


def bases_by_split(prepared: Path, genome: str = "genome") -> dict[str, set[tuple[str, int]]]:
    """Return the bases of a genome in each split, read from the tar files."""
    bases: dict[str, set[tuple[str, int]]] = {"train": set(), "val": set(), "test": set()}
    for shard in load_manifest(prepared).shards:
        with tarfile.open(prepared / shard.name) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    meta = {name: np.atleast_1d(value).tolist() for name, value in json.load(stream).items()}
                    size = len(meta["start"])
                    columns = (meta[name] * (size // len(meta[name])) for name in ("genome", "contig", "start", "end"))
                    for found, contig, start, end in zip(*columns, strict=True):
                        if found == genome:
                            bases[meta["split"][0]] |= {(contig, i) for i in range(start, end)}
    return bases


def test_rows_lie_in_the_same_split_of_the_prepared_data(tmp_path: Path, peaks: list[Bed]) -> None:
    prepared = build(tmp_path, *BUILD)
    bases = bases_by_split(prepared)
    assert bases["val"] and bases["test"] and not bases["train"] & (bases["val"] | bases["test"])
    report, tables = run(tmp_path, tmp_path / "peaks.bed", window=300, prepared=str(prepared))
    for table, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        assert {row["label"] for row in tables[table]} == {"0", "1"}
        for row in tables[table]:
            assert {(row["contig"], i) for i in range(int(row["start"]), int(row["end"]))} <= bases[split]
    rows = {(row["contig"], int(row["start"])) for rows in tables.values() for row in rows if row["label"] == "1"}
    crossing = 0
    for contig, start, end, _ in peaks:
        first = (start + end) // 2 - 150
        window = {(contig, i) for i in range(first, first + 300)}
        inside = any(window <= found for found in bases.values())
        crossing += not inside and all(any(base in found for found in bases.values()) for base in window)
        assert inside or (contig, first) not in rows
    assert report["dropped"]["crosses the border of two splits"] == crossing > 0


def test_a_contig_that_is_held_out_is_dev_and_test_is_empty(tmp_path: Path, peaks: list[Bed]) -> None:
    prepared = build(tmp_path, "--k", "3", "--val-contigs", "c")
    _, tables = run(tmp_path, tmp_path / "peaks.bed", window=300, prepared=str(prepared))
    assert {row["contig"] for row in tables["dev"]} == {"c"} and not tables["test"]
    assert {row["contig"] for row in tables["train"]} == {"a", "b"}


def test_of_several_genomes_the_one_of_the_intervals_is_taken(tmp_path: Path, peaks: list[Bed]) -> None:
    """Both have a contig `a`, of different lengths."""
    rng = np.random.default_rng(3)
    write_genome(tmp_path / "other.fa", {"a": "".join(rng.choice(list("ACGT"), 40_000).tolist())})
    prepared = tmp_path / "prepared"
    words = [str(tmp_path / "genome.fa"), str(tmp_path / "other.fa"), *BUILD, "--out", str(prepared)]
    assert main(["build", *words]) == 0
    bases = bases_by_split(prepared)
    _, tables = run(tmp_path, tmp_path / "peaks.bed", window=300, prepared=str(prepared))
    for table, split in (("dev", "val"), ("test", "test")):
        assert tables[table]
        for row in tables[table]:
            assert (row["contig"], int(row["start"])) in bases[split]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"val_contigs": ("c",)}, "--prepared and --val-contigs: pass only one of them"),
        ({"test_fraction": 0.0}, "--prepared and --test-fraction: pass only one of them"),
        ({"block_bases": 5000}, "--block-bases 5000: no table is made of random blocks; omit it"),
    ],
)
def test_other_flags_of_splits_are_refused(tmp_path: Path, peaks: list[Bed], flags, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, tmp_path / "peaks.bed", window=300, prepared="prepared", **flags)


def test_data_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, peaks: list[Bed], capsys) -> None:
    prepared = build(tmp_path, "--k", "3")
    words = ["labels", str(tmp_path / "peaks.bed"), "--window", "300", "--out", str(tmp_path / "out"), "--prepared"]
    fasta = ["--fasta", str(tmp_path / "genome.fa")]
    other = write_genome(tmp_path / "other.fa", {"a": "ACGT" * 3000, "b": "ACCT" * 15_000})
    capsys.readouterr()
    for prepared_words, said in (
        ([str(prepared), *fasta], "holds out nothing; build it with --val-fraction and"),
        ([str(prepared), "--fasta", str(other)], "has no genome with these contigs and lengths"),
        ([str(tmp_path), *fasta], "manifest.json"),
    ):
        assert main([*words, *prepared_words]) == 2
        found = capsys.readouterr().err
        assert said in found and found.count("\n") == 1, found
    assert not (tmp_path / "out").exists()
