"""`embed` on a model with random weights, compared with stock transformers on one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from support import random_bases
from tiny_models import POSITIONS, read_table, save_bert, stock_states, write_fasta
from transformers import BertForMaskedLM

from dnabert_rm.cli.main import main
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer.windows import windows

MAX_KMERS, K = POSITIONS - 2, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "mlm", BertForMaskedLM)


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    rng = np.random.default_rng(5)
    lengths = [24, 9, 3, 24, 70, 16, 5, 40, 2]
    return {f"s{i}": random_bases(rng, length) for i, length in enumerate(lengths)} | {"gap": "N" * 70 + "ACGTTGCAAC"}


def embed(model: Path, fasta: Path, output: Path, *words: object) -> Path:
    command = ["embed", "--model", model, "--input", fasta, "--output", output, "--batch-size", 3, *words]
    assert main([str(word) for word in command]) == 0
    return output


def known_windows(sequence: str) -> list[tuple[range, str]]:
    """Return the windows over a sequence that have a known k-mer, with their bases."""
    found = [(w, sequence[w.start : w.stop + K - 1]) for w in windows(max(0, len(sequence) - K + 1), MAX_KMERS)]
    return [(window, part) for window, part in found if len(part) >= K and set(part) != {"N"}]


def strand_mean(model: Path, part: str, layer: int = -1) -> np.ndarray:
    """Return the states (T, H) of k-mers, averaged over both strands."""
    other = kmer.reverse_complement(part.encode()).decode()
    return (stock_states(model, part, layer)[1:-1] + stock_states(model, other, layer)[1:-1][::-1]) / 2


def test_pooled_embeddings_in_every_format(model: Path, sequences: dict[str, str], tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    vectors = np.load(embed(model, fasta, tmp_path / "e.npy"), mmap_mode="r")
    assert vectors.dtype == np.float32 and vectors.shape == (len(sequences), 16)
    for vector, sequence in zip(vectors, sequences.values(), strict=True):
        parts = [stock_states(model, part)[1:-1] for _, part in known_windows(sequence)]
        # A token in two windows counts twice.
        expected = np.concatenate(parts).mean(axis=0) if parts else np.full(16, np.nan)
        assert vector == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert [row["id"] for row in read_table(tmp_path / "e.ids.csv")] == list(sequences)
    table = parquet.read_table(embed(model, fasta, tmp_path / "e.parquet"))
    assert table["id"].to_pylist() == list(sequences)
    assert table["embedding"].null_count == 1 and table["embedding"][8].as_py() is None
    assert np.array(table["embedding"].to_pylist()[:8], np.float32) == pytest.approx(vectors[:8])
    rows = read_table(embed(model, fasta, tmp_path / "e.csv"))
    assert [float(rows[4][f"e{i}"]) for i in range(16)] == pytest.approx(vectors[4], rel=1e-6)
    assert rows[8] == {"id": "s8"} | {f"e{i}": "" for i in range(16)}


@pytest.mark.parametrize("layer", [None, 0, 1, -1])
@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_other_poolings_layers_and_strands(
    pooling: str, layer: int | None, model: Path, sequences: dict[str, str], tmp_path: Path
) -> None:
    words = ["--pooling", pooling, "--both-strands", *([] if layer is None else ["--layer", layer])]
    vectors = np.load(embed(model, write_fasta(tmp_path / "a.fa", sequences), tmp_path / "e.npy", *words))
    number = -1 if layer is None else layer
    for vector, sequence in zip(vectors, sequences.values(), strict=True):
        found = []
        for _, part in known_windows(sequence):
            strands = [
                stock_states(model, one, number) for one in (part, kmer.reverse_complement(part.encode()).decode())
            ]
            found.append(np.mean([s[0] if pooling == "cls" else s[1:-1].max(axis=0) for s in strands], axis=0))
        joined = {"cls": np.mean, "max": np.max}[pooling](found, axis=0) if found else np.full(16, np.nan)
        assert vector == pytest.approx(joined, abs=1e-5, nan_ok=True)


def test_one_embedding_per_token(model: Path, sequences: dict[str, str], tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    vectors = np.load(embed(model, fasta, tmp_path / "t.npy", "--per-token", "--both-strands"))
    expected, index = [], []
    for name, sequence in sequences.items():
        tokens: list[list[np.ndarray]] = [[] for _ in range(max(0, len(sequence) - K + 1))]
        for window, part in known_windows(sequence):
            for token, state in zip(window, strand_mean(model, part), strict=True):
                tokens[token].append(state)
        index.append({"id": name, "first_row": str(len(expected)), "rows": str(len(tokens))})
        expected += [np.mean(states, axis=0) if states else np.full(16, np.nan) for states in tokens]
    assert read_table(tmp_path / "t.ids.csv") == index
    assert vectors == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)


def test_mistakes_are_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(tmp_path / "a.fa", {"a": "ACGTACGT"})

    def error_of(output: str, *words: object) -> str:
        command = ["embed", "--model", model, "--input", fasta, "--output", tmp_path / output, *words]
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "must end in .npy, .csv, .parquet" in error_of("e.txt")
    assert "--per-token writes only .npy; choose a .npy file" in error_of("e.csv", "--per-token")
    assert "--layer 3: the model has 2 layers; pass 0 … 2, or -1 … -3" in error_of("e.npy", "--layer", 3)
    (tmp_path / "e.ids.csv").touch()
    assert "e.ids.csv: exists already" in error_of("e.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "e.ids.csv"]


def test_a_model_of_non_overlapping_tokens_is_named(
    tmp_path: Path, sequences: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_bert(tmp_path / "other", BertForMaskedLM)
    (other / "pretraining.json").write_text('{"config": {"data": {"overlap": false}}}')
    fasta = write_fasta(tmp_path / "a.fa", sequences)
    embed(other, fasta, tmp_path / "e.npy")
    assert "other: was trained on non-overlapping k-mers; pass --non-overlapping" in capsys.readouterr().err
    embed(other, fasta, tmp_path / "n.npy", "--non-overlapping")
    assert "warning" not in capsys.readouterr().err
