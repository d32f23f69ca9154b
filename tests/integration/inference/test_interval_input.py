"""`predict` and `embed` on intervals of a genome, and tracks for genome browsers."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from support import random_bases
from tiny_models import read_table, save_bert, stock_logits, stock_states, write_fasta
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from dnabert_rm.cli.main import main
from dnabert_rm.inference import interval_regions

INTERVALS = [("two", 3, 20, "+"), ("one", 40, 60, "-"), ("one", 5, 25, "."), ("two", 30, 41, "-")]
CLASSES = {"num_labels": 2, "problem_type": "single_label_classification"}
COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture(scope="module")
def genome() -> dict[str, str]:
    rng = np.random.default_rng(3)
    return {"one": random_bases(rng, 90), "two": random_bases(rng, 50)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "classes", BertForSequenceClassification, **CLASSES)


@pytest.fixture
def files(genome: dict[str, str], tmp_path: Path) -> list[str]:
    """Flags for the intervals and the genome."""
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    bed = tmp_path / "a.bed"
    bed.write_text("".join(f"{name}\t{start}\t{end}\tx\t0\t{strand}\n" for name, start, end, strand in INTERVALS))
    return ["--regions", str(bed), "--fasta", str(fasta)]


def run(command: str, model: Path, files: list[str], output: Path, *words: Any) -> int:
    return main([command, "--model", str(model), *files, "--output", str(output), *map(str, words)])


def sequence_of(genome: dict[str, str], name: str, start: int, end: int, strand: str) -> str:
    text = genome[name][start:end]
    return text.translate(COMPLEMENT)[::-1] if strand == "-" else text


def probability(model: Path, sequence: str) -> float:
    logits = stock_logits(AutoModelForSequenceClassification, model, sequence)
    return float((np.exp(logits) / np.exp(logits).sum())[1])


def test_each_interval_has_the_prediction_of_its_sequence(
    model: Path, files: list[str], genome: dict[str, str], tmp_path: Path
) -> None:
    assert run("predict", model, files, tmp_path / "a.csv", "--batch-size", 3) == 0
    rows = read_table(tmp_path / "a.csv")
    assert list(rows[0]) == ["contig", "start", "end", "strand", "name", "prediction", "p_LABEL_0", "p_LABEL_1"]
    found = [(row["contig"], int(row["start"]), int(row["end"]), row["strand"]) for row in rows]
    assert found == [(name, start, end, "-" if strand == "-" else "+") for name, start, end, strand in INTERVALS]
    for row, interval in zip(rows, INTERVALS, strict=True):
        assert float(row["p_LABEL_1"]) == pytest.approx(probability(model, sequence_of(genome, *interval)), abs=3e-6)


def test_windows_are_those_of_labels_and_end_with_the_contig(
    model: Path, files: list[str], genome: dict[str, str], tmp_path: Path
) -> None:
    assert run("predict", model, files, tmp_path / "a.csv", "--window", 12, "--anchor", "start", "--upstream", 8) == 0
    found = [
        (row["contig"], int(row["start"]), int(row["end"]), row["strand"]) for row in read_table(tmp_path / "a.csv")
    ]
    # On the minus strand of two, the 5' end is base 40, and 8 of the 12 bases lie behind it.
    assert found == [("two", 0, 7, "+"), ("one", 56, 68, "-"), ("one", 0, 9, "+"), ("two", 37, 49, "-")]


def test_embeddings_of_intervals(model: Path, files: list[str], genome: dict[str, str], tmp_path: Path) -> None:
    assert run("embed", model, files, tmp_path / "a.npy") == 0
    vectors = np.load(tmp_path / "a.npy")
    for vector, interval in zip(vectors, INTERVALS, strict=True):
        expected = stock_states(model, sequence_of(genome, *interval))[1:-1].mean(axis=0)
        np.testing.assert_allclose(vector, expected, atol=3e-6)
    assert (tmp_path / "a.ids.csv").read_text().splitlines()[:2] == ["contig,start,end,strand,name", "two,3,20,+,x"]


def test_bases_of_intervals_have_positions_in_the_contig(
    files: list[str], genome: dict[str, str], tmp_path: Path
) -> None:
    head = {"task": "bases", "labels": ["E", "I"], "overlapping": True, "max_tokens": None, "long": "window"}
    model = save_bert(tmp_path / "bases", BertForTokenClassification, num_labels=2, head=head)
    assert run("predict", model, files, tmp_path / "a.csv") == 0
    rows = read_table(tmp_path / "a.csv")
    places = [(row["contig"], int(row["position"])) for row in rows]
    assert places == [(name, i) for name, start, end, _ in INTERVALS for i in range(start, end)]
    # Intervals on the minus strand are read forward. The first base is covered by one token only.
    first = rows[places.index(("one", 40))]
    logits = stock_logits(AutoModelForTokenClassification, model, genome["one"][40:60])[1]
    assert float(first["p_I"]) == pytest.approx((np.exp(logits) / np.exp(logits).sum())[1], abs=3e-6)


def test_a_bedgraph_of_tiles(model: Path, genome: dict[str, str], tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", {**genome, "gap": "N" * 30})
    words = ["--input", str(fasta)]
    assert run("predict", model, words, tmp_path / "a.bedGraph", "--tile", 20) == 0
    assert run("predict", model, words, tmp_path / "a.csv", "--tile", 20) == 0
    header, *lines = (tmp_path / "a.bedGraph").read_text().splitlines()
    assert header == 'track type=bedGraph name="LABEL_1" autoScale=on'
    expected = [
        f"{row['contig']}\t{row['start']}\t{row['end']}\t{row['p_LABEL_1']}"
        for row in read_table(tmp_path / "a.csv")
        if row["prediction"]
    ]
    assert lines == expected and len(lines) == 8
    assert run("predict", model, words, tmp_path / "b.bg", "--tile", 20, "--track", "LABEL_0") == 0
    assert float((tmp_path / "b.bg").read_text().splitlines()[1].split("\t")[3]) == pytest.approx(
        1 - float(lines[0].split("\t")[3]), abs=2e-6
    )


def test_a_bed_of_intervals(model: Path, files: list[str], tmp_path: Path) -> None:
    assert run("predict", model, files, tmp_path / "track.bed") == 0
    assert run("predict", model, files, tmp_path / "a.csv") == 0
    with open(tmp_path / "track.bed", newline="") as stream:
        lines = list(csv.reader(stream, delimiter="\t"))
    for line, row in zip(lines, read_table(tmp_path / "a.csv"), strict=True):
        score = round(1000 * float(row["p_LABEL_1"]))
        assert line == [row["contig"], row["start"], row["end"], "x", str(score), row["strand"]]
    fasta = ["--input", files[3]]
    assert run("predict", model, fasta, tmp_path / "tiles.bed", "--tile", 20) == 0
    assert run("predict", model, fasta, tmp_path / "tiles.csv", "--tile", 20) == 0
    with open(tmp_path / "tiles.bed", newline="") as stream:
        lines = list(csv.reader(stream, delimiter="\t"))
    for line, row in zip(lines, read_table(tmp_path / "tiles.csv"), strict=True):
        assert line[3:] == [row["prediction"], str(round(1000 * float(row["p_LABEL_1"]))), "."]


def test_a_bed_of_two_independent_labels_has_the_probability_of_the_predicted_one(
    files: list[str], tmp_path: Path
) -> None:
    labels = {0: "A", 1: "B"}
    heads = {"id2label": labels, "label2id": {"A": 0, "B": 1}, "problem_type": "multi_label_classification"}
    model = save_bert(tmp_path / "labels", BertForSequenceClassification, **heads)
    assert run("predict", model, files, tmp_path / "track.bed") == 0
    assert run("predict", model, files, tmp_path / "a.csv") == 0
    with open(tmp_path / "track.bed", newline="") as stream:
        scores = [int(line[4]) for line in csv.reader(stream, delimiter="\t")]
    rows = read_table(tmp_path / "a.csv")
    single = [(row, score) for row, score in zip(rows, scores, strict=True) if row["prediction"] in ("A", "B")]
    assert {row["prediction"] for row, _ in single} >= {"A"}
    for row, score in single:
        assert score == round(1000 * float(row[f"p_{row['prediction']}"]))


def test_embeddings_of_intervals_in_parquet(model: Path, files: list[str], tmp_path: Path) -> None:
    assert run("embed", model, files, tmp_path / "e.parquet") == 0
    assert run("embed", model, files, tmp_path / "e.csv") == 0
    table, rows = parquet.read_table(tmp_path / "e.parquet"), read_table(tmp_path / "e.csv")
    for name in ("contig", "start", "end", "strand", "name"):
        assert list(map(str, table[name].to_pylist())) == [row[name] for row in rows]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("a.csv", ["--input", "x.fa"], "--input FILE or --regions FILE: pass one of them"),
        ("a.csv", ["--tile", 20], "--tile 20: applies to --input"),
        ("a.csv", ["--upstream", 3], "pass --window as well"),
        ("a.csv", ["--window", 5, "--upstream", 5], "--upstream 5: must be below --window 5"),
        ("a.csv", ["--track", "LABEL_1"], "--track LABEL_1: chooses the numbers of a .bedGraph file; omit it"),
        ("a.bedGraph", [], "a.bed, line 3: bedGraph needs sorted intervals that do not overlap"),
        ("a.bg", ["--step", 3], "--step 3: is the distance between tiles"),
        ("a.bg", ["--track", "no"], "--track no: pass one of the model's labels: LABEL_0, LABEL_1"),
    ],
)
def test_mistakes_with_intervals_are_one_line(
    model: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: list, said: str
) -> None:
    assert run("predict", model, files, tmp_path / name, *words) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("error") == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("one 0 9, one 9 20, two 5 9", 0),
        ("two 5 9, one 0 9, one 9 20", 0),
        ("one 0 9, one 8 20", 2),
        ("one 20 30, one 0 9", 2),
        ("one 40 60, two 1 5, one 60 70", 3),
    ],
)
def test_a_bedgraph_needs_sorted_intervals(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str, line: int
) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    (tmp_path / "a.bed").write_text("".join(row.strip().replace(" ", "\t") + "\n" for row in rows.split(",")))
    files = ["--regions", str(tmp_path / "a.bed"), "--fasta", str(fasta)]
    assert run("predict", model, files, tmp_path / "a.bg") == (2 if line else 0)
    assert not line or f"a.bed, line {line}: bedGraph needs sorted intervals" in capsys.readouterr().err


def test_a_long_interval_is_read_in_blocks(
    model: Path, genome: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    (tmp_path / "a.bed").write_text("one\t3\t88\tx\t0\t-\none\t3\t88\n")
    files = ["--regions", str(tmp_path / "a.bed"), "--fasta", str(fasta), "--long", "window"]
    texts = []
    for size in (1 << 20, 7, 85):
        monkeypatch.setattr(interval_regions, "BLOCK_BASES", size)
        assert run("predict", model, files, tmp_path / f"{size}.csv") == 0
        texts.append((tmp_path / f"{size}.csv").read_text())
    assert texts[0] == texts[1] == texts[2]


def test_features_and_strands_of_gff(model: Path, genome: dict[str, str], tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    lines = ("gene\t11\t30\t.\t-\t.\tID=a;Name=first", "exon\t11\t20\t.\t-\t.\tID=b", "region\t1\t50\t.\t.\t.\tID=c")
    (tmp_path / "a.gff3").write_text("".join(f"two\tx\t{line}\n" for line in lines))
    files = ["--regions", str(tmp_path / "a.gff3"), "--fasta", str(fasta), "--feature", "gene"]
    for words, strand in (([], "-"), (["--ignore-strand"], "+")):
        assert run("predict", model, files, tmp_path / "a.csv", "--overwrite", *words) == 0
        (row,) = read_table(tmp_path / "a.csv")
        assert [row[name] for name in ("contig", "start", "end", "strand", "name")] == [
            "two",
            "10",
            "30",
            strand,
            "first",
        ]
        sequence = sequence_of(genome, "two", 10, 30, strand)
        assert float(row["p_LABEL_1"]) == pytest.approx(probability(model, sequence), abs=3e-6)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("three\t1\t9\n", "line 2: {fasta} has no contig three; remove the line, or pass the right genome"),
        ("two\t40\t51\n", "line 2: ends at 51, but two has 50 bases in {fasta}; pass the right genome"),
    ],
)
def test_intervals_that_the_genome_does_not_have(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    (tmp_path / "a.bed").write_text("one\t1\t9\n" + line)
    files = ["--regions", str(tmp_path / "a.bed"), "--fasta", str(fasta)]
    assert run("predict", model, files, tmp_path / "a.csv") == 2
    assert said.format(fasta=fasta) in capsys.readouterr().err


def test_a_track_needs_coordinates(
    genome: dict[str, str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = write_fasta(tmp_path / "genome.fa", genome)
    assert run("predict", model, ["--input", str(fasta)], tmp_path / "a.bed") == 2
    assert "a track needs coordinates; pass --tile BASES, or --regions and --fasta" in capsys.readouterr().err
    pretrained = save_bert(tmp_path / "pretrained", BertForMaskedLM)
    assert run("embed", pretrained, ["--fasta", str(fasta)], tmp_path / "a.npy") == 2
    assert "--input FILE or --regions FILE: pass one of them" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "bed", "bedGraph"])
def test_a_name_that_ends_in_gz_is_compressed(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    words = ["--input", str(write_fasta(tmp_path / "genome.fa", genome))]
    plain, packed = tmp_path / f"a.{ending}", tmp_path / f"a.{ending}.gz"
    for output in (plain, packed):
        assert run("predict", model, words, output, "--tile", 20) == 0
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    first = packed.read_bytes()
    assert first[4:8] == bytes(4), "no time, so that the same predictions give the same bytes"
    assert run("predict", model, words, packed, "--tile", 20, "--overwrite") == 0
    assert packed.read_bytes() == first
    capsys.readouterr()
    assert run("predict", model, words, tmp_path / f"b.{ending}.bz2", "--tile", 20) == 2
    assert "only gzip is written; choose a name that ends in .gz" in capsys.readouterr().err
    overlap = run("predict", model, words, packed, "--tile", 20, "--step", 10, "--overwrite")
    assert overlap == (2 if ending == "bedGraph" else 0)


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_flags_without_effect_are_refused(
    model: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    ignored = {"--window": "50", "--anchor": "start", "--upstream": "10", "--feature": "gene"}
    ignored |= {"--attribute": "a=b", "--name-attribute": "x", "--ignore-strand": ""}
    fasta = ["--input", files[3]]
    for flag, value in ignored.items():
        assert run(command, model, fasta, tmp_path / "a.csv", flag, *filter(None, [value])) == 2
        assert f"{flag}: applies to --regions; omit it" in capsys.readouterr().err
    for words, message in ((files, "applies to a table of --input"), (fasta, "genome.fa is FASTA, without columns")):
        assert run(command, model, words, tmp_path / "a.csv", "--id-column", "x") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()
