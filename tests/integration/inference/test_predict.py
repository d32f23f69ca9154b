"""`predict` on models with random weights, compared with stock transformers on one sequence at a time."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import random_bases
from tiny_models import POSITIONS, read_table, save_bert, stock_logits, write_fasta
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from dnabert_rm.cli.main import main
from dnabert_rm.tokenizer.windows import windows
from dnabert_rm.utils import progress

MAX_KMERS = POSITIONS - 2
K = 3
CLASSES = "single_label_classification"
LENGTHS = [3, 24, 7, 24, 80, 4, 24, 11, 51, 23, 25, 9]


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {f"seq{i}": random_bases(rng, length) for i, length in enumerate(LENGTHS)}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classes"
    return save_bert(folder, BertForSequenceClassification, num_labels=3, problem_type=CLASSES)


def predict(model: Path, source: Path | str, output: Path, *words: object, code: int = 0) -> list[dict[str, str]]:
    found = main(["predict", "--model", str(model), "--input", str(source), "--output", str(output), *map(str, words)])
    assert found == code
    return read_table(output) if output.exists() else []


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def window_logits(folder: Path, sequence: str) -> np.ndarray:
    """Return the mean logits of the windows over a sequence."""
    cut = [sequence[w.start : w.stop + K - 1] for w in windows(len(sequence) - K + 1, MAX_KMERS)]
    return np.mean([stock_logits(AutoModelForSequenceClassification, folder, part) for part in cut], axis=0)


def middle_of(sequence: str) -> str:
    start = max(0, len(sequence) - K + 1 - MAX_KMERS) // 2
    return sequence[start : start + MAX_KMERS + K - 1]


def numbers(row: dict[str, str], prefix: str = "p_") -> list[float]:
    return [float(value) for name, value in row.items() if name.startswith(prefix)]


def test_rows_are_in_order_and_match_stock_transformers(
    classifier: Path, sequences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    rows = predict(classifier, fasta, tmp_path / "a.csv", "--batch-size", 2)
    assert [row["id"] for row in rows] == list(sequences)
    for row, sequence in zip(rows, sequences.values(), strict=True):
        probabilities = softmax(stock_logits(AutoModelForSequenceClassification, classifier, middle_of(sequence)))
        assert numbers(row) == pytest.approx(probabilities, abs=3e-6)
        assert row["prediction"] == f"LABEL_{probabilities.argmax()}"
    assert len({row["prediction"] for row in rows}) > 1, "the model should distinguish the sequences"
    assert "a.csv: 12 rows; " in capsys.readouterr().err
    # A table, gzip and standard input give the same bytes.
    table = tmp_path / "a.tsv"
    table.write_text("id\tsequence\n" + "".join(f"{name}\t{s}\n" for name, s in sequences.items()))
    compressed = gzip.compress(fasta.read_bytes())
    (tmp_path / "a.fa.gz").write_bytes(compressed)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(compressed))))
    for number, source in enumerate([table, tmp_path / "a.fa.gz", "-"]):
        predict(classifier, source, tmp_path / f"{number}.csv", "--batch-size", 2)
        assert (tmp_path / f"{number}.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_long_sequences_by_windows_and_tiles(classifier: Path, sequences: dict[str, str], tmp_path: Path) -> None:
    sequences = {**sequences, "gap": "N" * 60, "half": "N" * 60 + sequences["seq4"]}
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    rows = predict(classifier, fasta, tmp_path / "w.csv", "--long", "window")
    for row, (name, sequence) in zip(rows, sequences.items(), strict=True):
        if name.startswith("seq"):
            assert numbers(row) == pytest.approx(softmax(window_logits(classifier, sequence)), abs=3e-6)
    assert rows[-2] == {"id": "gap", "prediction": "", "p_LABEL_0": "", "p_LABEL_1": "", "p_LABEL_2": ""}
    assert rows[-1]["prediction"]
    rows = predict(classifier, fasta, tmp_path / "t.csv", "--tile", 20, "--step", 8)
    assert list(rows[0]) == ["contig", "start", "end", "prediction", "p_LABEL_0", "p_LABEL_1", "p_LABEL_2"]
    coordinates = [(row["contig"], int(row["start"]), int(row["end"])) for row in rows]
    assert [(start, end) for name, start, end in coordinates if name == "seq8"] == [
        (s, min(s + 20, 51)) for s in (0, 8, 16, 24, 32)
    ]
    for row, (name, start, end) in zip(rows, coordinates, strict=True):
        part = sequences[name][start:end]
        if set(part) == {"N"}:
            assert row["prediction"] == ""
        else:
            probabilities = softmax(stock_logits(AutoModelForSequenceClassification, classifier, part))
            assert numbers(row) == pytest.approx(probabilities, abs=3e-6)


def test_tasks_of_finetuning_json(sequences: dict[str, str], tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    labels = ["enhancer", "promoter", "exon"]
    head = {"task": "multi-label", "labels": labels, "overlapping": False, "max_tokens": 10, "long": "middle"}
    model = save_bert(tmp_path / "many", BertForSequenceClassification, num_labels=3, head=head)
    rows = predict(model, fasta, tmp_path / "m.csv")
    predictions = set()
    for row, sequence in zip(rows, sequences.values(), strict=True):
        start = max(0, len(sequence) // K - 8) // 2 * K
        logits = stock_logits(AutoModelForSequenceClassification, model, sequence[start : start + 8 * K])
        assert numbers(row) == pytest.approx(1 / (1 + np.exp(-logits)), abs=3e-6)
        predictions.add(row["prediction"])
        assert row["prediction"] == ";".join(name for name, logit in zip(labels, logits, strict=True) if logit > 0)
    assert any(";" in prediction for prediction in predictions)
    scale = {"target_mean": [10.0, -3.0], "target_std": [2.0, 0.5]}
    head = {"task": "regression", "labels": ["dev", "hk"], "long": "window", **scale}
    model = save_bert(tmp_path / "values", BertForSequenceClassification, num_labels=2, head=head)
    for row, sequence in zip(predict(model, fasta, tmp_path / "r.csv"), sequences.values(), strict=True):
        values = window_logits(model, sequence) * scale["target_std"] + scale["target_mean"]
        assert [float(row["prediction_dev"]), float(row["prediction_hk"])] == pytest.approx(values, rel=2e-5)


@pytest.mark.parametrize("overlapping", [True, False])
def test_each_base_has_the_mean_of_its_kmers_in_all_windows(
    overlapping: bool, sequences: dict[str, str], tmp_path: Path
) -> None:
    labels = ["out", "in"]
    head = {"task": "bases", "labels": labels, "overlapping": overlapping, "long": "window"}
    model = save_bert(tmp_path / "bases", BertForTokenClassification, num_labels=2, head=head)
    sequences = {**sequences, "gap": "N" * 90 + sequences["seq4"][:30]}
    rows = predict(model, write_fasta(tmp_path / "a.fa", sequences), tmp_path / "b.csv")
    expected = []
    step = 1 if overlapping else K
    for name, sequence in sequences.items():
        found: list[list[np.ndarray]] = [[] for _ in sequence]
        num_tokens = (len(sequence) - K) // step + 1
        for window in windows(num_tokens, MAX_KMERS):
            part = sequence[window.start * step : (window.stop - 1) * step + K]
            if set(part) == {"N"}:
                continue
            for token, logits in zip(
                window, stock_logits(AutoModelForTokenClassification, model, part)[1:-1], strict=True
            ):
                # The last token predicts the bases after it, too.
                for base in range(token * step, len(sequence) if token == num_tokens - 1 else token * step + K):
                    found[base].append(logits)
        expected += [(name, base, found[base]) for base in range(len(sequence))]
    assert [(row["id"], int(row["position"])) for row in rows] == [(name, base) for name, base, _ in expected]
    for row, (_, _, logits) in zip(rows, expected, strict=True):
        if logits:
            probabilities = softmax(np.mean(logits, axis=0))
            assert numbers(row) == pytest.approx(probabilities, abs=3e-6)
            assert row["prediction"] == labels[int(probabilities.argmax())]
        else:
            assert row["prediction"] == row["p_in"] == ""


def test_lora_adapters_match_peft(classifier: Path, sequences: dict[str, str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA is an extra: pip install 'dnabert_rm[lora]'")
    import torch

    base = save_bert(tmp_path / "base", BertForMaskedLM)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["pooler", "classifier"]
    )
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    folder = tmp_path / "adapters"
    adapted.save_pretrained(folder)
    (folder / "finetuning.json").write_text('{"task": "classes", "labels": ["no", "yes"]}')
    rows = predict(folder, write_fasta(tmp_path / "a.fa", sequences), tmp_path / "l.csv")
    from dnabert_rm.tokenizer import KmerTokenizer

    for row, sequence in zip(rows, sequences.values(), strict=True):
        inputs = KmerTokenizer(K)(middle_of(sequence), return_tensors="pt")
        with torch.no_grad():
            probabilities = adapted.eval()(**inputs).logits[0].softmax(-1).numpy()
        assert numbers(row) == pytest.approx(probabilities, abs=3e-6)


def test_mistakes_are_one_line_and_leave_no_output(
    classifier: Path, sequences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta, out = write_fasta(tmp_path / "a.fa", sequences), tmp_path / "out.csv"

    def error_of(*words: object, model: Path = classifier, source: Path = fasta) -> str:
        predict(model, source, out, *words, code=2)
        error = capsys.readouterr().err
        assert error.startswith("dnabert-rm predict: error: ") and error.count("\n") == 1
        return error

    out.write_text("mine")
    assert "exists already; choose another file or pass --overwrite" in error_of()
    predict(classifier, fasta, out, "--overwrite")
    assert len(read_table(out)) == len(sequences)
    out.unlink()
    capsys.readouterr()
    assert "--step 5: is the distance between tiles; pass --tile as well" in error_of("--step", 5)
    assert "--tile 25: has 23 tokens, but the model takes 22 at once; pass 24 or less" in error_of("--tile", 25)
    assert "--max-tokens 25: the model has 24 positions" in error_of("--max-tokens", 25)
    mlm = save_bert(tmp_path / "mlm", BertForMaskedLM)
    assert "lacks 4 tensors of a BertForSequenceClassification, such as bert.pooler.dense.bias" in error_of(model=mlm)
    bad = tmp_path / "bad.csv"
    bad.write_text("sequence\n" + "ACGT\n" * 200 + "ACGX\n")
    assert f"{bad}:202: 'X' is not a nucleotide" in error_of("--batch-size", 1, source=bad)
    assert "no such file" in error_of(source=tmp_path / "none.fa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "bad.csv", "mlm"]


@pytest.mark.parametrize("command", ["predict", "embed", "score-variants"])
def test_the_input_is_never_replaced(
    classifier: Path, sequences: dict[str, str], tmp_path: Path, capsys, monkeypatch, command: str
) -> None:
    """Whatever the command reads is refused as its output before any work, also through a link or standard input."""
    model = tmp_path / "model"
    shutil.copytree(classifier, model)
    (model / "e.csv").write_text("mine")
    table = tmp_path / "in.csv"
    table.write_text("sequence,notes\n" + "".join(f"{sequence},mine\n" for sequence in sequences.values()))
    fasta = write_fasta(tmp_path / "g.fa", sequences)
    (tmp_path / "link.csv").symlink_to(table)
    (tmp_path / "hard.csv").hardlink_to(table)
    reads = ["--vcf", table, "--fasta", fasta] if command == "score-variants" else ["--input", table]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def error_of(output: Path, *words: object) -> str:
        given = [*(words or reads), "--output", output, "--overwrite"]
        assert main([command, "--model", str(model), *map(str, given)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        return error

    for name in ("in.csv", "link.csv", "hard.csv"):
        output = tmp_path / name
        assert f"--output {output}: is the same file as the input {table}; choose another file" in error_of(output)
    assert f"is the same file as the input {model / 'e.csv'}" in error_of(model / "e.csv")
    if command == "score-variants":
        assert f"is the same file as the input {fasta}" in error_of(fasta)
        return
    link = ["--input", tmp_path / "link.csv"]
    assert "is the same file as the input" in error_of(table, *link)
    with open(table) as stream:
        saved = os.dup(0)
        os.dup2(stream.fileno(), 0)
        try:
            assert "is the same file as the input standard input" in error_of(table, "--input", "-")
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    if command == "predict":
        monkeypatch.chdir(tmp_path)
        assert "is the same file" in error_of(Path("in.csv"))


def test_progress_counts_bases_and_windows_and_the_start_names_the_work(
    classifier: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    rng = np.random.default_rng(2)
    sequences = {name: random_bases(rng, length) for name, length in (("a", 400), ("b", 130))}
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    packed = tmp_path / "a.fa.gz"
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0)

    def lines_of(source: Path, *words: object) -> list[str]:
        predict(classifier, source, tmp_path / "o.csv", "--overwrite", *words)
        return capsys.readouterr().err.splitlines()

    tiled = lines_of(fasta, "--tile", 20, "--step", 5)
    assert tiled[0] == "tiles of 20 bases every 5: each base goes through the model 4 times"
    bars = [line for line in tiled if line.startswith("sequences: ")]
    num_rows = len(read_table(tmp_path / "o.csv"))
    assert bars[-1].startswith(f"sequences: 530 of {fasta.stat().st_size} bases, ")
    assert bars[-1].endswith(f", {num_rows} windows")
    assert lines_of(fasta, "--tile", 20, "--step", 80)[0] == (
        "tiles of 20 bases every 80: 25.0% of the bases go through the model"
    )
    for words in (["--tile", 20], ["--tile", 20, "--step", 20], ["--long", "window"], ["--long", "middle"]):
        lines = lines_of(packed, *words)
        assert not any("tiles of" in line for line in lines)
        assert [line for line in lines if line.startswith("sequences: ")][-1].startswith("sequences: 530 of ? bases")


def test_labels_with_commas_stay_one_cell(sequences: dict[str, str], tmp_path: Path) -> None:
    head = {"task": "classes", "labels": ["a,b", 'c"d']}
    model = save_bert(tmp_path / "model", BertForSequenceClassification, num_labels=2, head=head)
    predict(model, write_fasta(tmp_path / "a.fa", sequences), tmp_path / "c.csv")
    with open(tmp_path / "c.csv", newline="") as stream:
        assert next(csv.reader(stream)) == ["id", "prediction", "p_a,b", 'p_c"d']


@pytest.mark.parametrize("command", ["predict", "embed", "score-variants"])
def test_a_diverged_model_is_one_line(
    classifier: Path, sequences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    if command == "score-variants":
        damaged = save_bert(tmp_path / "model", BertForMaskedLM)
    else:
        damaged = tmp_path / "model"
        shutil.copytree(classifier, damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][:] = float("nan")
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    flags = ["--region", "seq1:1-5", "--fasta"] if command == "score-variants" else ["--input"]
    words = [command, "--model", str(damaged), "--output", str(tmp_path / "a.csv"), *flags, str(fasta)]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the model: its outputs are NaN or infinite" in error and not (tmp_path / "a.csv").exists()
