"""`predict` repeats the test predictions of `finetune`, for every task."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from finetuning import LABELS, data_of, save_model, settings_for

from dnabert_rm.cli.main import run_one
from dnabert_rm.finetune.finetune_model import finetune


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


def cells(path: Path, columns: list[str] | None = None) -> list[list[str]]:
    with open(path) as stream:
        rows = list(csv.DictReader(stream))
    names = columns or [name for name in rows[0] if name.startswith(("prediction", "p_"))]
    return [[row[name] for name in names] for row in rows]


@pytest.mark.parametrize(("task", "columns"), LABELS, ids=str)
@pytest.mark.parametrize("long", ["middle", "window"])
def test_predict_repeats_the_predictions_of_finetune(model, tmp_path: Path, task: str, columns, long: str) -> None:
    data = data_of(task, columns, tmp_path, lengths=(20, 60))  # the model has 40 positions
    options = {"task": task, "long": long} | ({"label_columns": columns} if columns != ("label",) else {})
    finetune(settings_for(model, data, tmp_path / "tuned", **options))
    predicted = tmp_path / "predicted.csv"
    words = ["--model", tmp_path / "tuned" / "model", "--input", data / "test.csv", "--output", predicted]
    assert run_one("predict", "dnabert-rm predict", [*map(str, words)]) == 0
    expected = cells(tmp_path / "tuned" / "predictions.csv")
    if task == "bases":
        found: dict[str, dict[int, str]] = {}
        with open(predicted) as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["id"], {})[int(row["position"])] = row["prediction"]
        for letters, (text,) in zip(found.values(), expected, strict=True):
            assert "".join(letters.get(base, ".") for base in range(len(text))) == text
        return
    for row, other in zip(cells(predicted), expected, strict=True):
        for value, expected_value in zip(row, other, strict=True):
            try:
                assert float(value) == pytest.approx(float(expected_value), rel=1e-4, abs=2e-6)
            except ValueError:
                assert value == expected_value
