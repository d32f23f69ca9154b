"""`dnabert-rm evaluate bits` on stock models: groups of bases, several k on the same bases, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import build
from support import random_bases
from tiny_models import save_bert, write_fasta
from transformers import BertForMaskedLM

from dnabert_rm.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two genomes with lower-case halves; the contigs `v` are held out."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("first", "second"):
        contigs = {contig: random_bases(rng, length) for contig, length in (("t", 20_000), ("v", 5000))}
        contigs["v"] = contigs["v"][:2500].lower() + contigs["v"][2500:]
        write_fasta(folder / f"{name}.fa", contigs)
    build(folder / "first.fa", folder / "second.fa", "--out", folder / "prepared", "--k", 4, "--val-contigs", "v",
          "--record-soft-mask")  # fmt: skip
    return folder / "prepared"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [
        save_bert(folder / f"k{k}", BertForMaskedLM, k, max_position_embeddings=66, initializer_range=0.1)
        for k in (3, 4)
    ]


def evaluate(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main(["evaluate", "bits", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def test_models_of_different_k_are_scored_on_the_same_bases(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bits.json"
    words = ("--data", data, "--by", "strand,repeats,genome", "--output", output, "--hidden", "1,5")
    printed = evaluate(capsys, "--model", *models, *words)
    results = json.loads(output.read_text())
    rows = {(row["group"], row["name"]): row for row in results["rows"]}
    groups = ["all", "strand +", "strand -", "soft-masked", "not soft-masked", "first", "second"]
    for model in models:
        for group in groups:
            row = rows[group, str(model)]
            assert 1.9 < row["bits"]["1"] < 2.3 and 0 < row["standard_error"]["1"] < 0.1
        both = [rows[f"strand {strand}", str(model)]["bits"]["5"] for strand in "+-"]
        assert rows["all", str(model)]["bits"]["5"] == pytest.approx(sum(both) / 2)
        for parts in (("soft-masked", "not soft-masked"), ("first", "second")):
            values = [rows[part, str(model)]["bits"]["5"] for part in parts]
            assert min(values) <= rows["all", str(model)]["bits"]["5"] <= max(values)
    for line in ("composition", "markov_2", "markov_5"):
        assert 1.97 < rows["all", line]["bits"]["5"] < 2.03
    difference = rows["all", str(models[0])]["minus_line"]["1"]
    line = rows["all", results["best_line"]]["bits"]["1"]
    assert difference == pytest.approx(rows["all", str(models[0])]["bits"]["1"] - line)
    assert "Markov order 5" in printed and "strand -:" in printed and "hidden bases in a row" in printed


def test_an_even_answer_costs_two_bits_overlapping_or_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_bert(tmp_path / "even", BertForMaskedLM, 4, max_position_embeddings=66)
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(folder)
    for flags in ((), ("--non-overlapping",), ("--window", 40), ("--precision", "bf16")):
        output = tmp_path / "bits.json"
        evaluate(capsys, "--model", folder, "--data", data, "--output", output, "--overwrite", *flags)
        rows = json.loads(output.read_text())["rows"]
        bits = next(row["bits"] for row in rows if row["name"] == str(folder))
        assert bits == pytest.approx(dict.fromkeys(("1", "3", "5", "9"), 2.0), abs=1e-6), flags


def test_mistakes(data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(tmp_path / "g.fa", {"t": "ACGTT" * 2000, "v": "ACGTA" * 1000, "short": "ACGT" * 20})
    build(fasta, "--out", tmp_path / "plain", "--k", 4, "--val-contigs", "v")
    build(fasta, "--out", tmp_path / "short", "--k", 4, "--val-contigs", "short")
    model = ("--model", models[1])
    mistakes = {
        (*model, "--data", tmp_path / "plain", "--by", "repeats"): "--record-soft-mask",
        (*model, "--data", tmp_path / "short"): "no held-out segment is long enough",
        (*model, "--data", data, "--split", "test"): "no shards for split 'test'",
        (*model, "--data", data, "--split", "train"): "is also --train-split",
        (*model, "--data", data, "--window", 100): "has 66 positions; pass 66 or less",
        (*model, "--data", data, "--window", 12): "too short to hide",
        (*model, "--data", data, "--hidden", "0"): "--hidden",
        (*model, "--data", data, "--by", "species"): "--by species",
        (*model, "--data", tmp_path / "nowhere"): "no such file",
        ("--model", tmp_path, "--data", data): "config.json",
        (*model, "--data", data, "--output", data / "manifest.json"): "manifest.json",
    }
    for words, expected in mistakes.items():
        printed = evaluate(capsys, *words, code=2)
        assert expected in printed and printed.startswith("dnabert-rm evaluate"), printed
        assert printed.count("error:") == 1, printed
    assert "unknown command 'bit'" in _error(capsys, ["evaluate", "bit"])


def _error(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err
