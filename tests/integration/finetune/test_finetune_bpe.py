"""A model pretrained on BPE tokens: fine-tuning, prediction and embeddings, as with k-mers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from data_prep.cli import main as data_prep
from dnabert_rm.cli.main import main
from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output
from dnabert_rm.tokenizer import BpeTokenizer
from dnabert_rm.tokenizer.bpe_tokenizer import write_bpe_files

POSITIONS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "g.fa").write_text(">a\n" + random_bases(np.random.default_rng(0), 50_000) + "\n")
    words = ["train-bpe", str(folder / "g.fa"), "--vocab-size", "100", "--out", str(folder / "m"), "--workers", "1"]
    assert data_prep(words) == 0
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=100, max_position_embeddings=POSITIONS, initializer_range=0.3, **sizes)
    with suppress_transformers_output():
        BertForMaskedLM(config).save_pretrained(folder / "model")
    write_bpe_files(folder / "model", folder / "m", POSITIONS)
    return folder / "model"


def write_tables(folder: Path, per_base: bool = False) -> None:
    """Write sequences of 5 to 200 bases: some have several windows, some Ns, one consists of Ns only."""
    rng = np.random.default_rng(1)
    for name, rows in (("train", 60), ("dev", 20), ("test", 30)):
        with open(folder / f"{name}.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["sequence", "label"])
            for i in range(rows):
                sequence = random_bases(rng, int(rng.integers(5, 200)))
                if i % 5 == 0:
                    sequence = sequence[:40] + "N" * 30 + sequence[40:]
                if i == 7 and name == "test":
                    sequence = "NNNNNN"
                label = "".join("01"[base in "GC"] for base in sequence) if per_base else sequence.count("A") % 2
                writer.writerow([sequence, label])


def settings(model: Path, folder: Path, **changes) -> FinetuneSettings:
    tables = {name: folder / f"{name}.csv" for name in ("train", "dev", "test")}
    values = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, **tables, **changes}
    return FinetuneSettings(model=model, output=folder / "out", **values)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("long", ["middle", "window"])
def test_predict_repeats_the_predictions_of_fine_tuning(model: Path, tmp_path: Path, long: str) -> None:
    write_tables(tmp_path)
    finetune(settings(model, tmp_path, long=long))
    words = ["--model", tmp_path / "out/model", "--input", tmp_path / "test.csv", "--output", tmp_path / "p.csv"]
    assert main(["predict", *map(str, words)]) == 0
    expected, found = read(tmp_path / "out/predictions.csv"), read(tmp_path / "p.csv")
    assert len(expected) == len(found) == 30
    several = 0
    tokenizer = BpeTokenizer(model)
    for row, again in zip(expected, found, strict=True):
        if row["sequence"].strip("N"):
            assert float(again["p_1"]) == pytest.approx(float(row["p_1"]), abs=2e-5)
        else:
            assert again["p_1"] == "", "a sequence without a known token"
        several += len(tokenizer.token_ids([row["sequence"]])[0]) > POSITIONS - 2
    assert several > 5
    assert len({row["p_1"] for row in expected}) > 20


def test_stock_transformers_computes_the_same_logits(model: Path, tmp_path: Path) -> None:
    write_tables(tmp_path)
    finetune(settings(model, tmp_path))
    folder = tmp_path / "out/model"
    loaded, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    compared = 0
    for row in read(tmp_path / "out/predictions.csv"):
        batch = tokenizer(row["sequence"], return_tensors="pt")
        if batch["input_ids"].shape[1] <= POSITIONS:
            with torch.no_grad():
                probability = loaded(**batch).logits.softmax(-1)[0, 1].item()
            assert float(row["p_1"]) == pytest.approx(probability, abs=2e-5)
            compared += 1
    assert compared > 5


def test_one_class_per_base(model: Path, tmp_path: Path) -> None:
    write_tables(tmp_path, per_base=True)
    scores = finetune(settings(model, tmp_path, task="bases", long="window", epochs=20))
    # A token has one class for all of its bases, so few tokens can be entirely right.
    assert scores["metrics"]["test"]["mcc"] > 0.1
    words = ["--model", tmp_path / "out/model", "--input", tmp_path / "test.csv", "--output", tmp_path / "p.csv"]
    assert main(["predict", *map(str, words)]) == 0
    by_row: dict[str, str] = {}
    for cell in read(tmp_path / "p.csv"):
        assert int(cell["position"]) == len(by_row.get(cell["id"], ""))
        by_row[cell["id"]] = by_row.get(cell["id"], "") + (cell["prediction"] or "?")
    for i, row in enumerate(read(tmp_path / "out/predictions.csv"), 1):
        assert len(by_row[str(i)]) == len(row["sequence"])
        if row["sequence"].strip("N"):
            assert by_row[str(i)] == row["prediction"]


def test_embeddings_of_tokens_and_sequences(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sequences = [random_bases(rng, 12), random_bases(rng, 300), "NNN", "ACGTNNNACGT"]
    (tmp_path / "s.csv").write_text("sequence\n" + "\n".join(sequences) + "\n")
    words = ["--model", model, "--input", tmp_path / "s.csv"]
    assert main(["embed", *map(str, [*words, "--output", tmp_path / "t.npy", "--per-token"])]) == 0
    assert main(["embed", *map(str, [*words, "--output", tmp_path / "s.npy"])]) == 0
    ids = BpeTokenizer(model).token_ids(sequences)
    assert [int(row["rows"]) for row in read(tmp_path / "t.ids.csv")] == [len(row) for row in ids]
    with suppress_transformers_output():
        encoder = BertModel.from_pretrained(model).eval()
    with torch.no_grad():
        expected = encoder(torch.tensor([[2, *ids[0], 3]])).last_hidden_state[0, 1:-1]
    assert np.load(tmp_path / "t.npy")[: len(ids[0])] == pytest.approx(expected.numpy(), abs=1e-5)
    pooled = np.load(tmp_path / "s.npy")
    assert np.isnan(pooled).all(axis=1).tolist() == [False, False, True, False]


def test_what_needs_k_mers_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path)
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    (tmp_path / "v.vcf").write_text("##fileformat=VCFv4.3\n")
    embed = ["embed", "--model", model, "--input", tmp_path / "g.fa", "--output", tmp_path / "o.npy"]
    scored = ["--vcf", tmp_path / "v.vcf", "--fasta", tmp_path / "g.fa", "--output", tmp_path / "o.csv"]
    tables = [word for name in ("train", "dev", "test") for word in (f"--{name}", tmp_path / f"{name}.csv")]
    for words, message in (
        ([*embed, "--non-overlapping"], "--non-overlapping: applies to k-mers, but"),
        ([*embed, "--both-strands"], "--both-strands: BPE tokens have no reverse complement"),
        (["score-variants", "--model", model, *scored], "has BPE tokens, but score-variants needs overlapping k-mers"),
        (
            ["finetune", "--model", model, *tables, "--output", tmp_path / "out", "--non-overlapping"],
            "applies to k-mers",
        ),
    ):
        assert main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("o*"))
