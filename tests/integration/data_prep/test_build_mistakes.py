"""`build` rejects mistakes with one line and exit code 2, and changes no file."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from builds import content

from data_prep.cli import main
from dnabert_rm.data.manifest import load_manifest


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good.fa").write_text(">a\n" + "ACGTTGCA" * 50 + "\n>b\n" + "ACGGTA" * 50 + "\n")
    return tmp_path / "good.fa"


def write_files(folder: Path) -> None:
    (folder / "empty.fa").write_bytes(b"")
    (folder / "text.fa").write_text("chromosome\tlength\n")
    (folder / "binary.fa").write_bytes(bytes(range(256)) * 10)
    (folder / "later.fa").write_bytes(b">a\nACGTACGT\n\x00\x01\n")
    (folder / "protein.fa").write_text(">p\nMVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF\n")
    (folder / "cut.fa.gz").write_bytes(gzip.compress(b">a\n" + os.urandom(5000).hex().encode())[:3000])
    (folder / "gaps.fa").write_text(">a\nNNNNNNNNNN\n")
    (folder / "list.txt").write_text("good.fa\nmissing.fa\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/absent.fa"], "absent.fa: no such file"),
        (["{}"], "is a folder"),
        (["{}/empty.fa"], "empty.fa: is empty"),
        (["{}/text.fa"], "text.fa, line 1: not FASTA: expected '>name', found 'chromosome"),
        (["{}/binary.fa"], "binary.fa, line 1: not FASTA"),
        (["{}/later.fa"], r"later.fa, line 3: '\x00' is not a nucleotide code"),
        (["{}/protein.fa"], "protein.fa: more than half of its letters"),
        (["{}/cut.fa.gz"], "cut.fa.gz: the gzip data are damaged or end too early"),
        (["{}/gaps.fa"], "no segment is left"),
        (["--list", "{}/list.txt"], "missing.fa: no such file"),
        ([], "no FASTA file given; pass one"),
        (["{}/good.fa", "--k", "9"], "--k 9: k must be between 3 and 8"),
        (["{}/good.fa", "--k", "six"], "--k six: must be of type int"),
        (["{}/good.fa", "--workers", "0"], "--workers 0: must be at least 1"),
        (["{}/good.fa", "--unk-bases", "3"], "--unk-bases: requires --ambiguous unk"),
        (
            ["{}/good.fa", "--val-contigs", "a,b"],
            "--val-contigs a,b: no contig has this name; separate names with blanks",
        ),
        (["{}/good.fa", "--val-contigs", "aa"], "--val-contigs aa: no contig has this name; did you mean 'a'?"),
        (
            ["{}/good.fa", "--val-fraction", "0.4", "--test-fraction", "0.4"],
            "only 2 blocks of 100000 bases contain sequence",
        ),
        (["{}/good.fa", "--tokenizer", "bpe.model"], "bpe.model: no such file"),
        (["{}/good.fa", "--tokenizer", "{}/text.fa"], "text.fa: not a SentencePiece model"),
        (["{}/good.fa", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_no_folder(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_files(tmp_path)
    workers = [] if "--workers" in words else ["--workers", "1"]
    try:
        code = main(["build", *(word.format(tmp_path) for word in words), "--out", str(tmp_path / "out"), *workers])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("python -m data_prep") and err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_build_is_refused_with_the_differences(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["build", str(good), *out]) == 0
    before = content(tmp_path / "out")
    assert main(["build", str(good), "--k", "5", "--seed", "1", *out]) == 2
    err = capsys.readouterr().err
    assert "--k was 6, now 5" in err and "--seed was 0, now 1" in err and err.count("\n") == 1
    good.write_text(good.read_text() + "ACGT\n")
    assert main(["build", str(good), *out]) == 2
    assert "good.fa (genome good) has changed" in capsys.readouterr().err
    assert content(tmp_path / "out") == before


def test_an_unfinished_build_of_something_else_is_refused_too(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "out" / ".build"
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    manifest = load_manifest(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "holds shard-000000.tar, but no manifest" in capsys.readouterr().err
    scratch.mkdir()
    sources = [asdict(source) for source in manifest.sources]
    record = {"format_version": 2, "options": {**manifest.options, "k": 4}, "sources": sources}
    (scratch / "plan.json").write_text(json.dumps(record))
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "--k was 4, now 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "damage"), [("columns.npz", None), ("columns.npz", b"PK\x03\x04"), ("manifest.json", b"{}")]
)
def test_a_finished_folder_that_is_damaged_says_what_to_remove(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: bytes | None
) -> None:
    words = ["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 0
    (tmp_path / "out" / name).unlink()
    if damage is not None:
        (tmp_path / "out" / name).write_bytes(damage)
    before = content(tmp_path / "out")
    capsys.readouterr()
    assert main(words) == 2
    found = capsys.readouterr().err
    assert name in found and found.count("\n") == 1
    assert found.endswith(f"build the data again; to build it again, remove {tmp_path / 'out'} first\n")
    assert content(tmp_path / "out") == before


def test_an_out_folder_that_is_a_file_is_refused(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = good.read_bytes()
    assert main(["build", str(good), "--out", str(good), "--workers", "1"]) == 2
    assert "good.fa: is not a folder" in capsys.readouterr().err and good.read_bytes() == before


def test_two_builds_in_one_folder_are_refused(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / ".build").mkdir(parents=True)
    with open(tmp_path / "out" / ".build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "another build is running in this folder" in capsys.readouterr().err
    assert main(["build", str(good), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
