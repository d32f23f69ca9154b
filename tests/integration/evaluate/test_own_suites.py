"""Suites other than GUE end to end: Genomic Benchmarks' tables in a probe, a user's own suite in both commands."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from finetuning import write_table
from support import ROOT
from tiny_models import read_table, save_bert
from transformers import BertForMaskedLM

from data_prep.cli import main as prep
from dnabert_rm.cli.main import main
from dnabert_rm.evaluate.suite import entry_keys, load_suite

QUICK = ("--max-steps", 12, "--eval-steps", 6, "--warmup-steps", 2, "--learning-rate", "5e-3", "--dropout", 0)
OWN = """
name = "Own tracks"

[[data_sets]]
names = ["peaks/*"]
family = "peaks"
metric = "accuracy"
classes = 2

[[data_sets]]
names = ["expression"]
task = "regression"
metric = "spearman"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model") / "tiny", BertForMaskedLM)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of labelled tables, one with classes and one with numbers, and the suite that names them."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for seed, (split, rows) in enumerate({"train": 80, "dev": 30, "test": 40}.items()):
        for name in ("peaks/ctcf", "expression"):
            (root / "data" / name).mkdir(parents=True, exist_ok=True)
        write_table(root / "data/peaks/ctcf" / f"{split}.csv", ["0", "1"], rows, seed, lengths=(14, 22))
        with open(root / "data/expression" / f"{split}.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["sequence", "label"])
            for share in rng.uniform(0.1, 0.9, rows):
                bases = "".join(rng.choice(list("ACGT"), 22, p=[share, *[(1 - share) / 3] * 3]))
                writer.writerow([bases, bases.count("A")])
    (root / "own.toml").write_text(OWN)
    return root


def run(*words: object, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def test_tables_of_genomic_benchmarks_are_the_data_sets_of_the_suite(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    data_sets = {"demo_human_or_worm": ("human", "worm"), "human_ocr_ensembl": ("negative", "positive")}
    for split, rows in (("train", 40), ("test", 15)):
        for name, labels in data_sets.items():
            for label, weights in zip(labels, ([0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]), strict=True):
                folder = tmp_path / "download" / name / split / label
                folder.mkdir(parents=True)
                for number in range(rows):
                    (folder / f"{number}.txt").write_text("".join(rng.choice(list("ACGT"), 20, p=weights)))
    assert prep(["tables", str(tmp_path / "download"), "--out", str(tmp_path / "tables")]) == 0
    words = ("evaluate", "probe", "--model", model, "--data", tmp_path / "tables", "--baselines", "kmers")
    run(*words, "--suite", "genomic_benchmarks", "--output", tmp_path / "probes")
    printed = capsys.readouterr()
    assert "warning" not in printed.err and "| demo_human_or_worm | accuracy × 100 | all |" in printed.out
    rows_of_table = read_table(tmp_path / "probes/probe.csv")
    assert {(row["data_set"], row["metric"]) for row in rows_of_table} == {
        ("demo_human_or_worm", "accuracy"),
        ("human_ocr_ensembl", "accuracy"),
    }
    assert all(float(row["mean"]) > 80 for row in rows_of_table)
    run(*words, "--output", tmp_path / "wrong")
    printed = capsys.readouterr()
    assert "data sets of Genomic Benchmarks, not of GUE; pass --suite genomic_benchmarks" in printed.err
    assert "| demo_human_or_worm | MCC × 100 |" in printed.out


def test_own_suite_in_a_probe(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "probe", "--suite", data / "own.toml", "--model", model, "--data", data / "data")
    run(*words, "--output", tmp_path / "out", "--baselines", "kmers,cnn", "--cnn-epochs", 2, "--seeds", 1)
    found = {row["data_set"]: row["metric"] for row in read_table(tmp_path / "out/probe.csv")}
    assert found == {"peaks/ctcf": "accuracy", "expression": "spearman"}
    assert "| expression | Spearman × 100 |" in capsys.readouterr().out
    run(*words, "--output", tmp_path / "few", "--labels-per-class", 5, code=2)
    assert "--labels-per-class: expression has no classes; choose other data sets" in capsys.readouterr().err
    run(*words, "--output", tmp_path / "few", "--labels-per-class", 5, "--sets", "peaks", "--seeds", 1)
    (data / "own.toml").write_text(OWN.replace("classes = 2", "classes = 3"))
    run(*words, "--output", tmp_path / "three", "--sets", "peaks", "--baselines", "none")
    assert "warning: peaks/ctcf has 2 classes, but 3 in Own tracks; check --data" in capsys.readouterr().err
    (data / "own.toml").write_text(OWN)


def test_own_suite_in_gue(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--suite", data / "own.toml", "--model", model, "--data", data / "data", "--output", tmp_path / "out")
    run("gue", *words, *QUICK)
    printed = capsys.readouterr().out
    assert printed.startswith("# Fine-tuning on Own tracks\n\n## Own tracks data sets\n")
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["suite"] == "Own tracks" and scores["published"] == []
    by_name = {entry["data_set"]: entry for entry in scores["runs"]}
    test = by_name["expression"]["metrics"]["test"]
    assert by_name["expression"]["task"] == "regression" and test["spearman"] > 0.3
    assert f"| expression | expression | Spearman × 100 | {100 * test['spearman']:.2f} |" in printed
    accuracy = by_name["peaks/ctcf"]["metrics"]["test"]["accuracy"]
    assert f"| peaks/ctcf | peaks | accuracy × 100 | {100 * accuracy:.2f} |" in printed
    assert "chosen by MCC or R² on dev" in printed and "ublished" not in printed
    assert (tmp_path / "out/table.png").read_bytes()[:4] == b"\x89PNG"
    rows = [row for row in read_table(tmp_path / "out/table.csv") if row["row"] == "family mean"]
    assert [row["name"] for row in rows] == ["expression"], "a family with a wildcard may have any number of data sets"

    run("evaluate", "suite", *words, *QUICK)
    printed = capsys.readouterr()
    assert "2 in total, 2 finished before, 0 to do" in printed.err
    run("gue", *words[2:], *QUICK, code=2)
    assert "this finished run used the suite Own tracks instead of GUE" in capsys.readouterr().err


def test_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs/finetuning.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "example.toml").write_text(example)
    suite = load_suite(str(tmp_path / "example.toml"))
    assert suite.name == tomllib.loads(example)["name"] and suite.published and suite.families
    table = text.split("The keys of `[[data_sets]]`:")[1].split("\n\n- ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(entry_keys())
