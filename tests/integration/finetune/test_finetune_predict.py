"""`predict` repeats the test predictions of `finetune` for every task, also if transformers saved the model again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from finetuning import LABELS, data_of, save_model, settings_for, write_classes
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from dnabert_rm.cli.main import run_one
from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


def cells(path: Path, columns: list[str] | None = None) -> list[list[str]]:
    with open(path) as stream:
        rows = list(csv.DictReader(stream))
    names = columns or [name for name in rows[0] if name.startswith(("prediction", "p_"))]
    return [[row[name] for name in names] for row in rows]


@pytest.mark.parametrize(("task", "columns"), LABELS, ids=str)
@pytest.mark.parametrize(("long", "overlapping"), [("middle", True), ("window", True), ("window", False)])
def test_predict_repeats_the_predictions_of_finetune(
    model, tmp_path: Path, task: str, columns, long: str, overlapping: bool
) -> None:
    data = data_of(task, columns, tmp_path, lengths=(20, 60))  # the model has 40 positions
    options = {"task": task, "long": long, "overlapping": overlapping, "label_columns": columns}
    finetune(settings_for(model, data, tmp_path / "tuned", **options))
    predicted = tmp_path / "predicted.csv"
    words = ["--model", tmp_path / "tuned" / "model", "--input", data / "test.csv", "--output", predicted]
    assert run_one("predict", "dnabert-rm predict", [*map(str, words)]) == 0
    expected = cells(tmp_path / "tuned" / "predictions.csv")
    if task == "bases":
        for letters, (text,) in zip(predicted_letters(predicted), expected, strict=True):
            assert (letters.ljust(len(text), ".") if long == "middle" else letters) == text
        return
    for row, other in zip(cells(predicted), expected, strict=True):
        for value, expected_value in zip(row, other, strict=True):
            assert_same_cell(value, expected_value)


def predicted_letters(path: Path) -> list[str]:
    """Return the letters that `predict` wrote for each sequence, with "." for a base without a prediction."""
    found: dict[str, dict[int, str]] = {}
    for name, position, letter in cells(path, ["id", "position", "prediction"]):
        found.setdefault(name, {})[int(position)] = letter or "."
    return ["".join(letters.get(base, ".") for base in range(max(letters) + 1)) for letters in found.values()]


def assert_same_cell(value: str, expected: str) -> None:
    try:
        assert float(value) == pytest.approx(float(expected), rel=1e-4, abs=2e-6)
    except ValueError:
        assert value == expected


def save_again(folder: Path, to: Path, task: str) -> Path:
    """Load a model with transformers and save it elsewhere, with the tokenizer's files but no finetuning.json."""
    auto_class = AutoModelForTokenClassification if task == "bases" else AutoModelForSequenceClassification
    with suppress_transformers_output():
        auto_class.from_pretrained(folder).save_pretrained(to)
    for path in folder.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            shutil.copy(path, to)
    assert not (to / "finetuning.json").exists()
    return to


def predict(model: Path, source: Path, output: Path, code: int = 0) -> str:
    words = ["--model", model, "--input", source, "--output", output]
    assert run_one("predict", "dnabert-rm predict", [*map(str, words)]) == code
    return output.read_text() if output.exists() else ""


@pytest.mark.parametrize(("task", "columns"), [("classes", ("label",)), *LABELS], ids=str)
def test_a_model_saved_again_by_transformers_predicts_the_same(model, tmp_path: Path, task: str, columns) -> None:
    if task == "classes":
        data = write_classes(tmp_path)
    else:
        data = data_of(task, columns, tmp_path, lengths=(20, 60))
    options = {"task": task, "label_columns": columns, "long": "window", "max_tokens": 20, "overlapping": False}
    finetune(settings_for(model, data, tmp_path / "tuned", **options))
    first = tmp_path / "tuned" / "model"
    expected = predict(first, data / "test.csv", tmp_path / "first.csv")
    again = save_again(first, tmp_path / "again", task)
    assert predict(again, data / "test.csv", tmp_path / "again.csv") == expected


@pytest.mark.parametrize(("task", "columns"), [("multi-label", ("label",)), ("regression", ("label",))], ids=str)
def test_a_model_without_our_records_goes_by_its_problem_type(model, tmp_path: Path, capsys, task, columns) -> None:
    data = data_of(task, columns, tmp_path)
    finetune(settings_for(model, data, tmp_path / "tuned", task=task))
    first = tmp_path / "tuned" / "model"
    expected = predict(first, data / "test.csv", tmp_path / "first.csv")
    foreign = save_again(first, tmp_path / "foreign", task)
    config = json.loads((foreign / "config.json").read_text())
    record = config.pop("dnabert_rm_finetuning")
    (foreign / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    if task == "multi-label":
        assert predict(foreign, data / "test.csv", tmp_path / "again.csv") == expected
    else:
        assert predict(foreign, data / "test.csv", tmp_path / "again.csv", code=2) == ""
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "so the unit of its outputs is unknown; copy this file" in error
    del config["problem_type"]
    (foreign / "config.json").write_text(json.dumps(config))
    assert predict(foreign, data / "test.csv", tmp_path / "unknown.csv", code=2) == ""
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'set "problem_type" in config.json to "single_label_classification" or' in error
    # Somebody trained the model again for another task.
    other = "regression" if task == "multi-label" else "multi_label_classification"
    changed = config | {"dnabert_rm_finetuning": record, "problem_type": other}
    (foreign / "config.json").write_text(json.dumps(changed))
    assert predict(foreign, data / "test.csv", tmp_path / "unknown.csv", code=2) == ""
    assert "dnabert_rm_finetuning contradicts" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "columns"), [("classes", ("label",)), *LABELS], ids=str)
def test_windows_of_unknown_bases_count_in_neither_command(model, tmp_path: Path, task: str, columns) -> None:
    if task == "classes":
        data = write_classes(tmp_path)
    else:
        data = data_of(task, columns, tmp_path)
    known = "ACGTTGCAACGGATTACAGGCATCC"
    sequences = [known + "N" * 80, "N" * 80 + known, known + "N" * 90 + known, known[:9] + "N" * 60 + known, known]
    with open(data / "test.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sequence", *columns])
        for sequence in sequences:
            writer.writerow([sequence, *(["1"] if task == "classes" else LABELS[task, columns](sequence))])
    options = {"task": task, "label_columns": columns, "long": "window", "max_tokens": 20}
    finetune(settings_for(model, data, tmp_path / "tuned", **options))
    predict(tmp_path / "tuned" / "model", data / "test.csv", tmp_path / "p.csv")
    expected = cells(tmp_path / "tuned" / "predictions.csv")
    if task == "bases":
        assert predicted_letters(tmp_path / "p.csv") == [text for (text,) in expected]
        assert "." in expected[0][0]
        return
    for row, other in zip(cells(tmp_path / "p.csv"), expected, strict=True):
        for value, expected_value in zip(row, other, strict=True):
            assert_same_cell(value, expected_value)


@pytest.mark.parametrize("change", ["labels", "problem_type"])
def test_a_record_of_an_earlier_training_is_refused(model, tmp_path: Path, capsys, change: str) -> None:
    """Another program trained the model again, and kept finetuning.json."""
    data = write_classes(tmp_path)
    finetune(settings_for(model, data, tmp_path / "tuned"))
    folder = tmp_path / "tuned" / "model"
    config = json.loads((folder / "config.json").read_text())
    advice = "remove this file if the model was later trained with another program"
    if change == "labels":
        config["id2label"] = {"0": "1", "1": "0"}
        advice = "write the same labels into both, or remove this file if the model was later"
    else:
        config["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    assert predict(folder, data / "test.csv", tmp_path / "p.csv", code=2) == ""
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"finetuning.json contradicts {'id2label' if change == 'labels' else 'problem_type'}; {advice}" in error
