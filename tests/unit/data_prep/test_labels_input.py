"""Files and flags of `data_prep labels`: formats, scores, names, and mistakes in one line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from labelled_windows import random_dna, run, write_bed, write_genome, write_peaks

from data_prep.cli import main
from dnabert_rm.utils.errors import ConfigError, DataError


def test_scores_are_numbers(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(11, 3000)})
    (tmp_path / "a.narrowPeak").write_text(
        "".join(f"c\t{100 * i}\t{100 * i + 50}\t.\t1000\t.\t{i / 4}\t-1\t-1\t7\n" for i in range(1, 12))
        + "c\t2500\t2550\t.\t1000\t.\t.\t-1\t-1\t7\n"
    )
    report, tables = run(
        tmp_path,
        tmp_path / "a.narrowPeak",
        window=10,
        anchor="summit",
        upstream=0,
        label="score",
        val_fraction=0.0,
        test_fraction=0.0,
    )
    assert [(row["start"], row["label"]) for row in tables["train"]] == [
        (str(100 * i + 7), f"{i / 4:g}") for i in range(1, 12)
    ]
    assert report["dropped"] == {"has no score": 1}


GFF = """##gff-version 3
c\tx\tgene\t101\t200\t.\t+\t.\tID=g1;Name=first%3B;biotype=coding
c\tx\tmRNA\t101\t200\t.\t+\t.\tID=m1;Parent=g1
c\tx\tgene\t301\t400\t5.5\t-\t.\tID=g2;biotype=coding
c\tx\tgene\t501\t600\t.\t-\t.\tID=g3;biotype=pseudo
##FASTA
>c
ACGT
"""
GTF = 'c\tx\tgene\t101\t200\t.\t+\t.\tgene_id "g1"; gene_name "first;"; biotype "coding";\n' + (
    'c\tx\texon\t101\t200\t.\t+\t.\tgene_id "g1"; level 2;\n'
    'c\tx\tgene\t301\t400\t5.5\t-\t.\tgene_id "g2"; biotype "coding"\n'
    'c\tx\tgene\t501\t600\t.\t-\t.\tgene_id "g3"; biotype "pseudo";\n'
)


@pytest.mark.parametrize(("name", "text"), [("a.gff3", GFF), ("a.gtf", GTF), ("a.gtf.gz", GTF)])
def test_features_and_attributes_of_gff_and_gtf(tmp_path: Path, name: str, text: str) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(12, 1000)})
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    _, tables = run(
        tmp_path,
        tmp_path / name,
        feature=("gene",),
        attribute=("biotype=coding",),
        label="name",
        anchor="start",
        window=11,
        upstream=0,
        val_fraction=0.0,
        test_fraction=0.0,
    )
    assert [(row["start"], row["end"], row["strand"], row["label"]) for row in tables["train"]] == [
        ("100", "111", "+", "first;"),
        ("389", "400", "-", "g2"),
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "a.gff3: without --feature every line is an interval (gene: 3, mRNA: 1)"),
        ({"feature": ("gene", "mRNA")}, ""),
        ({"attribute": ("biotype=coding",)}, ""),
    ],
)
def test_lines_of_several_features_give_a_warning(
    tmp_path: Path, flags: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(12, 1000)})
    (tmp_path / "a.gff3").write_text(GFF)
    run(
        tmp_path,
        tmp_path / "a.gff3",
        window=11,
        negatives="none",
        label="name",
        val_fraction=0.0,
        test_fraction=0.0,
        **flags,
    )
    found = [line for line in capsys.readouterr().err.splitlines() if "--feature" in line]
    assert len(found) == bool(said) and all(line.endswith(said) for line in found)


def test_a_gff_of_overlaps_gives_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--feature is not for the file of --overlap."""
    write_genome(tmp_path / "genome.fa", {"c": random_dna(12, 1000)})
    (tmp_path / "a.gff3").write_text(GFF)
    (tmp_path / "first.gff3").write_text("".join(GFF.splitlines(keepends=True)[:3]))
    overlap = str(tmp_path / "first.gff3")
    flags = {"label": "overlap", "overlap": overlap, "feature": ("gene",), "val_fraction": 0.0, "test_fraction": 0.0}
    run(tmp_path, tmp_path / "a.gff3", window=200, **flags)
    assert "--feature" not in capsys.readouterr().err


def test_existing_tables_are_kept(tmp_path: Path) -> None:
    write_peaks(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "test.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"has test\.csv already; choose another folder or pass --overwrite"):
        run(tmp_path, tmp_path / "peaks.bed", window=100, overwrite=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.csv"]
    assert (tmp_path / "out" / "test.csv").read_text() == "mine"


def test_encode_names_narrow_peaks_bed(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(23, 3000)})
    lines = [f"c\t{100 * i}\t{100 * i + 50}\t.\t1000\t.\t{i}\t-1\t-1\t7\n" for i in range(1, 9)]
    (tmp_path / "ENCFF1.bed").write_text("".join(lines))
    flags: dict[str, Any] = {"window": 10, "anchor": "summit", "label": "score", "upstream": 0}
    _, tables = run(tmp_path, tmp_path / "ENCFF1.bed", val_fraction=0.0, test_fraction=0.0, **flags)
    assert [(row["start"], row["label"]) for row in tables["train"]] == [
        (f"{100 * i + 7}", f"{i}") for i in range(1, 9)
    ]


@pytest.mark.parametrize("end", ["9" * 20, "9" * 5000, "-4", "٣"])
def test_a_position_that_is_no_number(tmp_path: Path, end: str) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(24, 300)})
    (tmp_path / "a.gff").write_text(f"c\tx\tgene\t10\t{end}\t.\t+\t.\tID=a\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: start '10' and end"):
        run(tmp_path, tmp_path / "a.gff", window=20)


def test_the_command_reports_mistakes_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genome = write_genome(tmp_path / "genome.fa", {"c": random_dna(25, 3000)})
    bed = write_bed(tmp_path / "a.bed", [("c", 100 * i, 100 * i + 20, "+") for i in range(1, 20)])
    words = ["--fasta", str(genome), "--window", "20"]
    for out, files, said in (
        (tmp_path / "genome.fa", [str(bed)], "is a file"),
        (Path("/proc/x"), [str(bed), "--block-bases", "100"], "can't be created"),
        (tmp_path / "out", [str(bed), "x.bed="], "x.bed=: no such file"),
        (tmp_path / "out", [f"negative={bed}", str(bed), "--negatives", "genome"], "negative is the label"),
        (tmp_path / "out", [f"A={bed}", f"A={bed}", f"B={bed}"], "two files have the class name A"),
    ):
        assert main(["labels", *files, *words, "--out", str(out)]) == 2
        found = capsys.readouterr().err
        assert said in found and found.count("\n") == 1, found


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"window": 20, "upstream": 20}, "--upstream 20: must be below --window 20"),
        ({"window": 20, "label": "overlap"}, "pass both or neither"),
        ({"window": 20, "label": "name", "negatives": "genome"}, "needs --label file"),
        ({"window": 20, "feature": ("gene",)}, "is read as BED"),
        ({"window": 20, "anchor": "summit"}, "line 1 has no summit"),
        ({"window": 20, "test_contigs": ("d",)}, "--test-contigs d: no contig has this name"),
        ({"window": 20, "test_contigs": ("c",)}, "train.csv would have no row"),
        ({"window": 20, "test_contigs": ("c",), "test_fraction": 0.1}, "--test-contigs and --test-fraction"),
        ({"window": 20, "negatives": "none", "block_bases": 100}, "have the label 1; pass --negatives genome"),
        ({"window": 5000}, "no window is left (19: reaches beyond its contig); choose a smaller --window"),
        ({"window": 20, "attribute": ("biotype",)}, "expected KEY=VALUE"),
        ({"window": 20, "val_fraction": 0.5, "test_fraction": 0.5}, "must be below 1"),
    ],
)
def test_mistakes_have_one_clear_message(tmp_path: Path, flags: dict[str, Any], said: str) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(17, 3000)})
    bed = write_bed(tmp_path / "a.bed", [("c", 100 * i, 100 * i + 20, "+") for i in range(1, 20)])
    with pytest.raises((ConfigError, DataError)) as raised:
        run(tmp_path, bed, **flags)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_intervals_of_another_genome_are_refused(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"chr1": random_dna(18, 3000)})
    bed = write_bed(tmp_path / "a.bed", [("1", 100, 120, "+")])
    with pytest.raises(ConfigError, match=r"none of its contigs \(1\) is in .*genome\.fa \(chr1\)"):
        run(tmp_path, bed, window=20)


def test_the_advice_fits_the_reason(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(17, 500) + "N" * 500})
    one = write_bed(tmp_path / "one.bed", [("c", 100, 120, "+"), ("c", 200, 220, "+")])
    gaps = write_bed(tmp_path / "gaps.bed", [("c", 600, 620, "+"), ("c", 700, 720, "+")])
    (tmp_path / "other.bed").write_bytes(one.read_bytes())
    (tmp_path / "plain.bed").write_text("c\t100\t120\n")
    for files, flags, advice in (
        ([one, tmp_path / "other.bed"], {}, r"4: same window with two labels\); remove the intervals"),
        ([gaps], {}, r"letters other than A, C, G, T\); choose a smaller --window or raise --unknown-bases"),
        ([tmp_path / "plain.bed"], {"label": "name"}, r"1: has no name\); choose another --label"),
    ):
        with pytest.raises(ConfigError, match=advice):
            run(tmp_path, *files, window=20, **flags)


def test_a_missing_file_in_a_folder_with_an_equals_sign_is_named_as_written(tmp_path: Path) -> None:
    write_genome(tmp_path / "genome.fa", {"c": random_dna(17, 500)})
    (tmp_path / "k=1").mkdir()
    with pytest.raises(DataError, match=r"k=1/missing\.bed: no such file"):
        run(tmp_path, tmp_path / "k=1" / "missing.bed", window=20)
    with pytest.raises(DataError, match=r"^/k/missing\.bed: no such file"):
        run(tmp_path, "name=/k/missing.bed", window=20)
