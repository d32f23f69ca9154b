"""`build --regions` and `--exclude FILE.bed` as commands: yeast's promoters, resuming, the same bytes, mistakes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builds import build, content
from doc_commands import blocks
from slow_fasta import slow_file, slow_ids
from support import ROOT, clean_environment

from data_prep.cli import main
from dnabert_rm.cli.main import main as dnabert_rm
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_segments

DATA_PAGE = ROOT / "docs" / "data.md"
HELD_OUT = {"chrI", "chrXVI"}
DECODED = {"chrI", "chrVI"}


@pytest.fixture(scope="module")
def yeast(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe of docs/data.md has run, with yeast's genome and transcripts."""
    folder = tmp_path_factory.mktemp("yeast")
    shutil.copy(test_data / "genomes" / "yeast_R64.fa.gz", folder / "genome.fa.gz")
    shutil.copy(test_data / "annotation" / "yeast_R64_polII_transcripts.bed", folder / "transcripts.bed")
    shutil.copy(test_data / "annotation" / "yeast_R64_TATA_boxes_rhee2012.bed", folder / "tata.bed")
    (recipe,) = [block for block in blocks(DATA_PAGE.read_text(), "bash") if "promoters.bed" in block]
    environment = clean_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", recipe],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def sequences(yeast: Path) -> dict[str, str]:
    return dict(slow_file(yeast / "genome.fa.gz"))


def covered(sequences: dict[str, str], path: Path) -> dict[str, np.ndarray]:
    """Mark the bases inside the intervals of a BED file, one interval at a time."""
    found = {name: np.zeros(len(sequence), dtype=bool) for name, sequence in sequences.items()}
    for line in path.read_text().splitlines():
        name, start, end = line.split("\t")[:3]
        found[name][int(start) : int(end)] = True
    return found


def stored(folder: Path, sequences: dict[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """Mark the bases in the segments of each split. Segments of two contigs are also decoded."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for shard in load_manifest(folder).shards:
        marks = splits.setdefault(shard.split, {n: np.zeros(len(s), dtype=bool) for n, s in sequences.items()})
        for _, meta, ids in read_segments(folder / shard.name):
            if meta["contig"] in DECODED:
                assert ids.tolist() == slow_ids(sequences[meta["contig"]][meta["start"] : meta["end"]], 6)
            marks[meta["contig"]][meta["start"] : meta["end"]] = True
    return splits


def test_the_recipe_stores_exactly_the_regions_and_holds_out_the_same_bases(
    yeast: Path, sequences: dict[str, str]
) -> None:
    inside = {
        "promoters": covered(sequences, yeast / "promoters.bed"),
        "genes": covered(sequences, yeast / "transcripts.bed"),
        "genome": {name: np.ones(len(sequence), dtype=bool) for name, sequence in sequences.items()},
    }
    for kind, expected in inside.items():
        folder = yeast / "prepared" / kind
        splits = stored(folder, sequences)
        assert set(splits) == {"train", "val"}
        for contig in load_manifest(folder).contigs:
            name = contig.contig
            split, other = ("val", "train") if name in HELD_OUT else ("train", "val")
            assert (splits[split][name] == expected[name]).all() and not splits[other][name].any()
            outside = int((~expected[name]).sum())
            assert contig.left_out == ({"outside_regions": outside} if outside else {})
        assert main(["verify", str(folder), "--workers", "1"]) == 0
    assert 2e6 < sum(marks.sum() for marks in inside["promoters"].values()) < 4e6


def test_the_recipes_folders_are_mixed_by_weight(yeast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(yeast / "prepared" / kind) for kind in ("promoters", "genes", "genome")]
    words = ["check", "--preset", "tiny", "--data", *folders, "--data.weights", "0.5", "0.3", "0.2", "--steps", "9"]
    more = ["--global-batch", "16", "--window", "512", "--ds-config", "zero0", "--output", str(yeast / "run")]
    assert dnabert_rm([*words, *more]) == 0
    assert "windows of 512 tokens per epoch" in capsys.readouterr().out


def test_a_fraction_holds_out_the_same_blocks_with_and_without_bed_files(
    yeast: Path, sequences: dict[str, str], tmp_path: Path
) -> None:
    fraction = ["--val-fraction", "0.1", "--test-fraction", "0.05", "--block-bases", "20000"]
    flags = {
        "all": [],
        "promoters": ["--regions", yeast / "promoters.bed"],
        "no_tata": ["--exclude", yeast / "tata.bed"],
    }
    found = {}
    for name, more in flags.items():
        build(yeast / "genome.fa.gz", *fraction, "--out", tmp_path / name, *more)
        found[name] = stored(tmp_path / name, sequences)
    for name in ("promoters", "no_tata"):
        for split, marks in found[name].items():
            assert all((marks[contig] <= found["all"][split][contig]).all() for contig in sequences)
    tata = covered(sequences, yeast / "tata.bed")
    assert not any((marks[name] & tata[name]).any() for marks in found["no_tata"].values() for name in sequences)


def mpi_build(*words: str | Path) -> None:
    if (program := shutil.which("mpirun", path=clean_environment()["PATH"])) is None:
        pytest.skip("mpirun is not installed")
    command = [program, "--oversubscribe", "-n", "3", sys.executable, "-m", "data_prep", "build", *map(str, words)]
    rooted = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env={**clean_environment(), **rooted}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bytes_do_not_depend_on_workers_ranks_compression_or_an_interruption(yeast: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [yeast / "genome.fa.gz", "--val-fraction", "0.1", "--shard-tokens", "500000"]
    words += ["--regions", yeast / "promoters.bed", "--exclude", "chrMito", yeast / "tata.bed"]
    build(*words, "--out", tmp_path / "one", "--workers", "1")
    reference = content(tmp_path / "one")
    assert len(reference) > 6
    build(*words, "--out", tmp_path / "two", "--workers", "2")
    assert content(tmp_path / "two") == reference
    mpi_build(*words, "--out", tmp_path / "ranks")
    assert content(tmp_path / "ranks") == reference
    out = tmp_path / "one"
    (out / "shard-000002.tar").unlink()
    done = build(*words, "--out", out)
    assert "shards are already finished" in done.stderr and content(out) == reference
    (tmp_path / "promoters.bed.gz").write_bytes(gzip.compress((yeast / "promoters.bed").read_bytes()))
    words[words.index(yeast / "promoters.bed")] = tmp_path / "promoters.bed.gz"
    build(*words, "--out", tmp_path / "gzip")
    shards = {name: data for name, data in content(tmp_path / "gzip").items() if name.endswith(".tar")}
    assert shards == {name: data for name, data in reference.items() if name.endswith(".tar")}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "g.fa").write_text(">a\n" + "ACGTTGCA" * 50 + "\n>b\n" + "ACGGTA" * 50 + "\n")
    (tmp_path / "keep.bed").write_text("a\t10\t90\nb\t20\t80\n")
    (tmp_path / "other.bed").write_text("a\t10\t91\n")
    return tmp_path


def run(folder: Path, *words: str) -> int:
    flags = [str(folder / word) if word.endswith((".bed", ".txt")) else word for word in words]
    return main(["build", str(folder / "g.fa"), "--out", str(folder / "out"), "--workers", "1", *flags])


def test_other_regions_are_another_build(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(small, "--regions", "keep.bed", "--exclude", "b") == 0
    options = load_manifest(small / "out").options
    assert options["exclude"] == ["b"] and "exclude_regions" not in options
    (file,) = options["regions"]
    assert file["file"] == "keep.bed" and len(file["sha256"]) == 64
    before = content(small / "out")
    for words, said in (
        (["--regions", "other.bed", "--exclude", "b"], "--regions was keep.bed (SHA-256"),
        (["--exclude", "b"], f"--regions was keep.bed (SHA-256 {file['sha256'][:8]}), now no BED file"),
        (["--regions", "keep.bed", "--exclude", "b", "other.bed"], "--exclude was no BED file, now other.bed (SHA-256"),
    ):
        capsys.readouterr()
        assert run(small, *words) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert run(small, "--regions", "keep.bed", "--exclude", "b") == 0
    (small / "keep.bed").write_text("a\t10\t95\nb\t20\t80\n")
    assert run(small, "--regions", "keep.bed", "--exclude", "b") == 2
    assert "--regions was keep.bed (SHA-256" in capsys.readouterr().err
    assert content(small / "out") == before


def test_an_unfinished_build_resumes_with_the_same_regions_only(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small, "--regions", "keep.bed", "--shard-tokens", "60", "--segment-tokens", "60") == 0
    whole = content(small / "out")
    manifest = load_manifest(small / "out")
    (small / "out" / ".build").mkdir()
    sources = [dataclasses.asdict(source) for source in manifest.sources]
    record = {"format_version": 2, "options": manifest.options, "sources": sources}
    (small / "out" / ".build" / "plan.json").write_text(json.dumps(record))
    shard = manifest.shards[0]
    (small / "out" / ".build" / f"{shard.name}.json").write_text(json.dumps(shard.to_json()))
    (small / "out" / "manifest.json").unlink()
    assert run(small, "--regions", "other.bed", "--shard-tokens", "60", "--segment-tokens", "60") == 2
    capsys.readouterr()
    assert run(small, "--regions", "keep.bed", "--shard-tokens", "60", "--segment-tokens", "60") == 0
    assert "1 of 3 shards are already finished" in capsys.readouterr().err
    assert content(small / "out") == whole


def test_without_bed_files_the_manifest_has_no_entry_for_them(small: Path) -> None:
    assert run(small, "--exclude", "b") == 0
    options = load_manifest(small / "out").options
    assert options["exclude"] == ["b"] and not {"regions", "exclude_regions"} & set(options)


def test_inspect_and_stats_show_the_bases_left_out(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "drop.bed").write_text("a\t50\t60\n")
    assert run(small, "--regions", "keep.bed", "--exclude", "drop.bed") == 0
    for command in ("inspect", "stats"):
        capsys.readouterr()
        assert main([command, str(small / "out")]) == 0
        out = capsys.readouterr().out
        assert "left out, outside regions: 560 bases" in out and "left out, excluded region: 10 bases" in out
        assert main([command, str(small / "out"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["left_out"] == {"excluded_region": 10, "outside_regions": 560}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regions", "absent.bed"], "absent.bed: no such file (a BED file expected)"),
        (["--regions", "text.txt"], "text.txt, line 1: not BED: expected contig, start and end"),
        (["--regions", "keep.bed", "far.bed"], "far.bed, line 2: no genome has a contig 'chrA', nor any other contig"),
        (["--exclude", "far.bed"], "far.bed, line 2: no genome has a contig 'chrA', nor any other contig of this file"),
        (["--exclude", "absent.bed"], "absent.bed: no contig has this name and no such file exists; did you mean"),
        (["--include", "keep.bed"], "keep.bed: no contig has this name (pass BED files to --regions); did you mean"),
        (["--regions", "keep.bed", "--exclude", "keep.bed"], "no run of A, C, G, T in the regions is long enough"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_no_folder(
    small: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (small / "far.bed").write_text("# a header\nchrA\t0\t9\n")
    (small / "text.txt").write_text("promoters\n")
    code = run(small, *words)
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("python -m data_prep") and err.count("\n") == 1 and said in err, err
    assert not (small / "out").exists()


def test_a_bed_file_from_a_pipe_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(small / "pipe.bed")
    assert run(small, "--regions", "pipe.bed") == 2
    assert "pipe.bed: is a pipe, but each BED file is read twice; write the data to a file first" in (
        capsys.readouterr().err
    )
