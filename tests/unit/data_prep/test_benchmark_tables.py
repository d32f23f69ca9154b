"""`data_prep tables`: each layout of a benchmark gives the tables that its files describe."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data_prep.cli import main
from dnabert_rm.evaluate.data_sets import find_sets
from dnabert_rm.evaluate.suite import load_suite

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def dna(seed: int, size: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), size).tolist())


def read(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="") as stream:
        return [(row["sequence"], row["label"]) for row in csv.DictReader(stream)]


def all_rows(folder: Path) -> dict[str, list[tuple[str, str]]]:
    return {split: read(folder / f"{split}.csv") for split in ("train", "dev", "test")}


def run(*words: object, code: int = 0) -> None:
    assert main(["tables", *map(str, words)]) == code


def test_text_files_by_class(tmp_path: Path) -> None:
    expected: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for split, size in (("train", 40), ("test", 6)):
        for label in ("negative", "positive"):
            folder = tmp_path / "in" / "enhancers" / split / label
            folder.mkdir(parents=True)
            for number in range(size):
                text = dna(number + len(label) * 100, 30)
                (folder / f"{number:03}.txt").write_text(text + "\n")
                expected[split].append((text, label))
    run(tmp_path / "in", "--out", tmp_path / "out", "--dev-fraction", 0.2)
    found = all_rows(tmp_path / "out" / "enhancers")
    assert found["test"] == expected["test"]
    assert sorted(found["train"] + found["dev"]) == sorted(expected["train"])
    # The same share of each class is held out.
    assert Counter(label for _, label in found["dev"]) == {"negative": 8, "positive": 8}
    run(tmp_path / "in", "--out", tmp_path / "again", "--dev-fraction", 0.2)
    assert all_rows(tmp_path / "again" / "enhancers") == found
    run(tmp_path / "in", "--out", tmp_path / "other", "--dev-fraction", 0.2, "--seed", 1)
    assert all_rows(tmp_path / "other" / "enhancers")["dev"] != found["dev"]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_intervals_by_class(tmp_path: Path, ending: str) -> None:
    genome = {"chr1": dna(1, 200), "chr2": dna(2, 150)}
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    expected: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for split in expected:
        (tmp_path / "in" / split).mkdir(parents=True)
        for label in ("a", "b"):
            lines = ["id,region,start,end,strand"]
            for i in range(10):
                name, strand = ("chr1", "chr2")[i % 2], "+-"[i % 3 == 0]
                start = 5 * i + len(split)
                lines.append(f"{i},{name},{start},{start + 20},{strand}")
                text = genome[name][start : start + 20]
                expected[split].append((text.translate(COMPLEMENT)[::-1] if strand == "-" else text, label))
            content = ("\n".join(lines) + "\n").encode()
            path = tmp_path / "in" / split / f"{label}{ending}"
            path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    run(tmp_path / "in", "--out", tmp_path / "out", "--fasta", tmp_path / "g.fa")
    found = all_rows(tmp_path / "out" / "in")
    assert found["test"] == expected["test"]
    assert sorted(found["train"] + found["dev"]) == sorted(expected["train"]) and len(found["dev"]) == 2


def test_labels_in_fasta_headers_and_parquet(tmp_path: Path) -> None:
    rows = {
        split: [(dna(10 * i + j, 12), str(i % 3)) for i in range(9)] for j, split in enumerate(("train", "dev", "test"))
    }
    one, two = tmp_path / "in" / "one", tmp_path / "in" / "sub" / "two"
    one.mkdir(parents=True)
    two.mkdir(parents=True)
    for split, content in rows.items():
        text = "".join(f">chr1:{i}-9|x|{label}\n{s[:5]}\n{s[5:]}\n" for i, (s, label) in enumerate(content))
        (one / f"{split}.fna").write_text(text)
        name = "validation" if split == "dev" else split
        halves = (content[:4], content[4:])
        for number, half in enumerate(halves):
            table = pa.table(
                {"name": ["x"] * len(half), "sequence": [s for s, _ in half], "label": [int(x) for _, x in half]}
            )
            parquet.write_table(table, two / f"{name}-0000{number}-of-00002.parquet")
    run(tmp_path / "in", "--out", tmp_path / "out")
    assert all_rows(tmp_path / "out" / "one") == rows
    assert all_rows(tmp_path / "out" / "sub" / "two") == rows


def as_kmers(sequence: str, k: int) -> str:
    return " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_kmers_of_dnabert(tmp_path: Path, ending: str) -> None:
    """The first row is longer than Python's default limit of a field. DNABERT reports its scores on dev.tsv."""
    sizes = {"train": 20, "dev": 6, "test": 5}
    rows = {split: [(dna(100 * i + size, 40), str(i % 2)) for i in range(size)] for split, size in sizes.items()}
    rows["train"][0] = (dna(1, 20_000), "1")
    write = gzip.open if ending.endswith("gz") else open
    for name, splits in (("three", sizes), ("two", ("train", "dev"))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for split in splits:
            with write(tmp_path / "in" / name / f"{split}{ending}", "wt") as stream:
                stream.write("sequence\tlabel\n")
                stream.writelines(f"{as_kmers(sequence, 6)}\t{label}\n" for sequence, label in rows[split])
    run(tmp_path / "in", "--out", tmp_path / "out")
    assert all_rows(tmp_path / "out" / "three") == rows
    two = all_rows(tmp_path / "out" / "two")
    assert two["test"] == rows["dev"] and len(two["dev"]) == 2
    assert sorted(two["train"] + two["dev"]) == sorted(rows["train"])


@pytest.mark.parametrize(
    ("sequence", "error"),
    [
        ("ACGTAC CGTACG TTACGG", "line 3: k-mer 3, TTACGG, is not CGTACG shifted by one base"),
        ("ACGTAC CGTACGA", "line 3: k-mer 2, CGTACGA, is not ACGTAC shifted by one base"),
        ("ACGTAX CGTAXA", "line 3: 'X' is not a nucleotide"),
        ("", "line 3: the sequence is empty"),
    ],
)
def test_kmers_that_do_not_overlap_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sequence: str, error: str
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text(f"sequence\tlabel\nACGTAC\t1\n{sequence}\t0\n")
    run(tmp_path, "--out", tmp_path / "out", code=2)
    assert f"test.tsv, {error}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tasks_in_one_parquet_file_are_data_sets_of_the_suite(tmp_path: Path) -> None:
    suite = load_suite("nucleotide_transformer")
    (tmp_path / "in").mkdir()
    expected: dict[str, dict[str, list[tuple[str, str]]]] = {name: {} for name in suite.names}
    for split in ("train", "test"):
        rows = [(name, dna(20 * i + j, 12), j % 2) for j in range(4) for i, name in enumerate(suite.names)]
        for name, sequence, label in rows:
            expected[name].setdefault(split, []).append((sequence, str(label)))
        columns = dict(zip(("task", "sequence", "label"), map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pa.table(columns), tmp_path / "in" / f"{split}.parquet")
    run(tmp_path / "in", "--out", tmp_path / "out", "--dev-fraction", 0.25)
    found = find_sets(tmp_path / "out", suite)
    assert [data_set.name for data_set in found] == list(suite.names) and all(data_set.known for data_set in found)
    for data_set in found:
        rows_found = all_rows(data_set.folder)
        assert rows_found["test"] == expected[data_set.name]["test"]
        assert sorted(rows_found["train"] + rows_found["dev"]) == sorted(expected[data_set.name]["train"])


def test_a_task_that_names_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without this, the rows of all tasks would be one data set."""
    columns = {"task": ["one", "all promoters"], "sequence": [dna(1, 12), dna(2, 12)], "label": [0, 1]}
    for split in ("train", "test"):
        parquet.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    run(tmp_path, "--out", tmp_path / "out", code=2)
    assert "task 'all promoters' can't name a folder" in capsys.readouterr().err


def test_existing_tables_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.fa").write_text("".join(f">{i}|{i % 2}\n{dna(i, 9)}\n" for i in range(20)))
    run(tmp_path, "--out", tmp_path / "out")
    before = (tmp_path / "out" / tmp_path.name / "train.csv").read_bytes()
    run(tmp_path, "--out", tmp_path / "out", code=2)
    assert "has train.csv already; choose another folder or pass --overwrite" in capsys.readouterr().err
    run(tmp_path, "--out", tmp_path / "out", "--overwrite", "--seed", 5)
    assert (tmp_path / "out" / tmp_path.name / "train.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no data set found"),
        ({"train.fa": ">a|0\nACGT\n"}, "has no rows for test.csv"),
        ({"train.fa": ">a\nACGT\n", "test.fa": ">a|0\nACGT\n"}, "record a has no label"),
        ({"train/x.csv": "region,start,end,strand\nc,0,4,+\n", "test/x.csv": "region\n"}, "--fasta: missing"),
        ({"train/x/1.txt": "ACGU\n", "test/x/1.txt": "A\n"}, "'U' is not a nucleotide; write T for U"),
        ({"train/x/1.txt": "\n", "test/x/1.txt": "A\n"}, "the sequence is empty"),
    ],
)
def test_mistakes_in_benchmarks_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run(tmp_path / "in", "--out", tmp_path / "out", code=2)
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "said"), [("sequence", "row 2: the sequence is empty"), ("label", "row 2: the label is missing")]
)
def test_missing_values_in_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, said: str) -> None:
    (tmp_path / "in").mkdir()
    table = {"sequence": ["ACGT", "ACGT"], "label": [0, 1]}
    for split in ("train", "test"):
        parquet.write_table(pa.table({**table, column: [table[column][0], None]}), tmp_path / "in" / f"{split}.parquet")
    run(tmp_path / "in", "--out", tmp_path / "out", code=2)
    assert said in capsys.readouterr().err


def test_text_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "in" / split / "x"
        folder.mkdir(parents=True)
        (folder / "1.txt").write_bytes(b"AC\xff")
    run(tmp_path / "in", "--out", tmp_path / "out", code=2)
    assert "is not a nucleotide" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("d,0,4,+", "has no contig d; pass the right genome"),
        ("c,2,9,+", "expected 0 <= start < end <= 8"),
        ("c,-1,4,+", "expected 0 <= start < end <= 8"),
        ("c,\N{SUPERSCRIPT TWO},4,+", "expected 0 <= start < end <= 8"),
        ("c,1," + "4" * 5000 + ",+", "expected 0 <= start < end <= 8"),
        ("c,0", "expected the columns region, start, end, strand"),
    ],
)
def test_intervals_that_a_genome_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, said: str) -> None:
    (tmp_path / "g.fa").write_text(">c\nACGTACGT\n")
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / "x.csv").write_text(f"region,start,end,strand\n{row}\n")
    run(tmp_path / "in", "--out", tmp_path / "out", "--fasta", tmp_path / "g.fa", code=2)
    found = capsys.readouterr().err
    assert "x.csv, line 2: " in found and said in found


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">c\nACGTACGT\n")
    for split in ("train", "test"):
        for name in ("csv", "txt/x", "fasta"):
            (tmp_path / "in" / name / split).mkdir(parents=True)
        (tmp_path / "in/csv" / split / "x.csv").write_text("region,start,end,strand\nc,1,5,+\n", encoding="utf-8-sig")
        (tmp_path / "in/txt/x" / split / "pos").mkdir()
        (tmp_path / "in/txt/x" / split / "pos" / "1.txt").write_text("ACGTT\n", encoding="utf-8-sig")
        (tmp_path / "in/fasta" / f"{split}.fa").write_text(">a|1\nACGTA\n", encoding="utf-8-sig")
    run(tmp_path / "in", "--out", tmp_path / "out", "--fasta", tmp_path / "g.fa")
    for name, row in (("csv", "CGTA,x"), ("txt/x", "ACGTT,pos"), ("fasta", "ACGTA,1")):
        assert (tmp_path / "out" / name / "test.csv").read_text() == f"sequence,label\n{row}\n"
