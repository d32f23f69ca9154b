"""`analyze sequences`: the map's files, and neighbours against a slow count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finetuning import save_model, write_table
from tiny_models import read_table

from dnabert_rm.analysis.sequence_map import NUM_NEIGHBOURS, map_sequences, neighbour_agreement
from dnabert_rm.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = save_model(tmp_path_factory.mktemp("models") / "hf")
    return folder


def test_labels_of_composition_are_separated_and_shuffled_ones_are_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "a.csv", ["x", "y"], 150, 3)
    for name in ("one", "two"):
        words = ["--table", str(table), "--output", str(tmp_path / f"{name}.png"), "--points", "120"]
        assert main(["analyze", "sequences", str(model), *words]) == 0
    printed = capsys.readouterr().out
    assert "so the embeddings separate the labels clearly" in printed
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    rows, found = read_table(table), read_table(tmp_path / "one.csv")
    assert len(found) == 120 and [row["label"] for row in found] == [
        rows[int(row["line"]) - 2]["label"] for row in found
    ]
    labels = np.random.default_rng(0).permutation([row["label"] for row in rows])
    lines = [f"{row['sequence']},{label}" for row, label in zip(rows, labels, strict=True)]
    (tmp_path / "shuffled.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")
    assert "don't separate" in map_sequences(model, tmp_path / "shuffled.csv", "label").sentence


def test_neighbours_are_counted_as_by_a_slow_count() -> None:
    rng = np.random.default_rng(1)
    points, labels = rng.normal(size=(40, 3)), rng.choice(list("abc"), 40).tolist()
    same, chance = [], []
    for i in range(40):
        order = sorted((j for j in range(40) if j != i), key=lambda j: float(((points[i] - points[j]) ** 2).sum()))
        same.append(np.mean([labels[j] == labels[i] for j in order[:NUM_NEIGHBOURS]]))
        chance.append(np.mean([labels[j] == labels[i] for j in order]))
    agreement, expected, error = neighbour_agreement(points, labels)
    assert agreement == pytest.approx(np.mean(same)) and expected == pytest.approx(np.mean(chance))
    assert error == pytest.approx(np.std(same, ddof=1) / np.sqrt(40))


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("a.txt", [], "must end in one of"),
        ("map.png", ["--label-column", "no"], "no column 'no'"),
        ("map.png", ["--layer", "9"], "the model has 2 layers"),
        ("map.png", ["--table", "few.csv"], "5 sequences are too few for a map"),
        ("map.png", ["--table", "one.csv"], "all 30 sequences have the label x; pass a table with two labels or more"),
    ],
)
def test_mistakes_of_the_map_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, name: str, words: list, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", ["x", "y"], 30, 3)
    write_table(tmp_path / "few.csv", ["x", "y"], 5, 3)
    write_table(tmp_path / "one.csv", ["x"], 30, 3)
    words = ["--table", "a.csv", *words] if "--table" not in words else words
    assert main(["analyze", "sequences", str(model), *words, "--output", name]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", ["sequences", "embeddings", "curves", "compare"])
def test_no_other_table_is_replaced(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    table = write_table(tmp_path / "embeddings.csv", ["x", "y"], 30, 3)
    labels = table.read_text()
    picture = str(tmp_path / "embeddings.png")
    words = {
        "sequences": [str(model), "--table", str(table), "--output", picture],
        "embeddings": [str(model), "--output", str(tmp_path), "--points", "32"],
        "curves": [str(tmp_path), "--output", picture],
        "compare": [str(tmp_path), "--output", picture],
    }[kind]
    assert main(["analyze", kind, *words]) == 2
    assert f"would replace {table}, which has other columns" in capsys.readouterr().err
    assert table.read_text() == labels and not Path(picture).exists()


def test_data_of_an_earlier_figure_are_replaced(model: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.csv", ["x", "y"], 30, 3)
    words = ["sequences", str(model), "--table", str(table), "--output", str(tmp_path / "map.png")]
    assert main(["analyze", *words]) == 0
    first = (tmp_path / "map.csv").read_text()
    (tmp_path / "map.csv").write_text("")  # left by a full disk
    assert main(["analyze", *words]) == 0 and (tmp_path / "map.csv").read_text() == first
    assert main(["analyze", *words, "--points", "20"]) == 0
    assert len(read_table(tmp_path / "map.csv")) == 20 < len(first.splitlines())
