"""`dnabert-rm evaluate probe` on a tiny model: its files, the cache, embeddings of stock transformers, and mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from finetuning import write_table
from tiny_models import read_table, save_bert, stock_states
from transformers import BertForMaskedLM

from dnabert_rm.cli.main import main
from dnabert_rm.evaluate.data_sets import STAND_IN, find_sets
from dnabert_rm.evaluate.probes.probe_data import read_probe_set
from dnabert_rm.evaluate.probes.probe_embeddings import TableEmbedder, open_embedder
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.evaluate.suite import load_suite

GUE = load_suite("gue")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete data set of three classes, and one without train.csv."""
    root = tmp_path_factory.mktemp("gue")
    for name, classes, splits in (("mouse/0", "01", "train dev test"), ("splice/reconstructed", "012", "dev test")):
        (root / name).mkdir(parents=True)
        for seed, split in enumerate(splits.split()):
            write_table(root / name / f"{split}.csv", list(classes), 60, seed, lengths=(14, 40))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model") / "tiny", BertForMaskedLM)


def probe(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main(["evaluate", "probe", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def test_probe_command_writes_results_and_uses_the_cache(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model", model, "--data", data, "--output", tmp_path, "--stand-in", "--labels-per-class", "0,8")
    words += ("--seeds", "1,2", "--baselines", "kmers,cnn", "--cnn-epochs", 2)
    printed = probe(capsys, *words)
    assert printed == (tmp_path / "probe.md").read_text()
    assert f"splice/reconstructed ({STAND_IN})" in printed and "not GUE scores" in printed
    rows = read_table(tmp_path / "probe.csv")
    assert [(row["data_set"], row["method"], row["labels_per_class"], row["seeds"]) for row in rows[:6]] == [
        ("mouse/0", "probe", "0", "1"),  # nothing here is random
        ("mouse/0", "probe", "8", "1 2"),
        ("mouse/0", "kmers", "0", "1"),
        ("mouse/0", "kmers", "8", "1 2"),
        ("mouse/0", "cnn", "0", "1 2"),
        ("mouse/0", "cnn", "8", "1 2"),
    ]
    assert rows[6]["data_set"] == "splice/reconstructed" and rows[6]["seeds"] == "1 2"  # other rows are held out
    assert float(rows[0]["mean"]) > 50 and float(rows[2]["mean"]) > 50
    results = json.loads((tmp_path / "probe.json").read_text())["results"]
    assert [found["layer"] for found in results[0]["fits"]["1"]["by_candidate"]] == [0, 1, 2]
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 5

    assert "has results already" in probe(capsys, *words, code=2)
    monkeypatch.setattr(TableEmbedder, "model", property(lambda self: pytest.fail("a model was loaded")))
    assert probe(capsys, *words, "--overwrite").split("|")[-1] == printed.split("|")[-1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    again = json.loads((tmp_path / "probe.json").read_text())["results"]
    assert [row["fits"] for row in again] == [row["fits"] for row in results]
    assert all(row["from_cache"] for row in again if row["method"] == "probe")


def test_embeddings_equal_stock_transformers(data: Path, model: Path, tmp_path: Path) -> None:
    settings = ProbeSettings(model=(model,), data=data, output=tmp_path, pooling=("mean", "cls"), batch_size=7)
    data_set = read_probe_set(find_sets(data, GUE)[0], GUE)
    embeddings = open_embedder(model, settings).embed(data_set)
    short = [row for row, sequence in enumerate(data_set.sequences) if len(sequence) <= 24]
    assert len(short) > 20
    for layer in range(3):
        means, first = (embeddings.features(pooling, layer) for pooling in ("mean", "cls"))
        for row in (short[0], short[-1]):
            states = stock_states(model, data_set.sequences[row], layer)
            np.testing.assert_allclose(means[row], states[1:-1].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(first[row], states[0], atol=1e-5)
    long = next(row for row, sequence in enumerate(data_set.sequences) if len(sequence) == 40)
    # 38 3-mers in windows of at most 22, half a window apart: they begin at 0, 11 and 16.
    windows = [data_set.sequences[long][start : start + 24] for start in (0, 11, 16)]
    mean = np.mean([stock_states(model, window, 1)[1:-1].mean(axis=0) for window in windows], axis=0)
    np.testing.assert_allclose(embeddings.features("mean", 1)[long], mean, atol=1e-5)


def test_changed_table_is_embedded_again(data: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_bytes((data / "mouse/0" / f"{split}.csv").read_bytes())
    embedder = open_embedder(model, ProbeSettings(model=(model,), data=folder, output=tmp_path / "out"))
    first = embedder.embed(read_probe_set(find_sets(folder, GUE)[0], GUE))
    write_table(folder / "test.csv", ["0", "1"], 60, seed=9)
    second = embedder.embed(read_probe_set(find_sets(folder, GUE)[0], GUE))
    assert not first.from_cache and not second.from_cache
    assert np.array_equal(first.features("mean", 2)[:120], second.features("mean", 2)[:120])
    assert not np.allclose(first.features("mean", 2)[120:], second.features("mean", 2)[120:])


def test_regression_probe_without_baselines(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with open(tmp_path / f"{split}.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["sequence", "label"])
            for share in rng.uniform(0.1, 0.9, 150):
                bases = "".join(rng.choice(list("ACGT"), 22, p=[share, *[(1 - share) / 3] * 3]))
                writer.writerow([bases, bases.count("A")])
    words = ("--model", model, "--data", tmp_path, "--output", tmp_path / "out", "--task", "regression")
    printed = probe(capsys, *words, "--baselines", "none", "--layers", "0,2", "--seeds", 5)
    assert "a tenth of train is held out" in printed and "k-mer" not in printed.splitlines()[2]
    row = read_table(tmp_path / "out/probe.csv")[0]
    assert row["metric"] == "r2" and float(row["mean"]) > 80 and row["dev_rows"] == "15"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "missing"], "missing: no such folder"),
        (["--layers", "3"], "has 2 layers; pass numbers from 0 to 2, or all"),
        (["--labels-per-class", "100"], "--labels-per-class 100: mouse/0 has a class with only"),
        (["--sets", "splice"], "no data set can be measured"),
        (["--data", "empty"], "no train.csv, dev.csv or test.csv"),
        (["--output", "file"], "is a file, but must be a folder"),
    ],
)
def test_probe_mistakes(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    given = {"--model": str(model), "--data": str(data), "--output": str(tmp_path / "out")}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        given[flag] = str(tmp_path / value) if flag in given else value
    assert message in probe(capsys, *(word for pair in given.items() for word in pair), code=2)
    assert not (tmp_path / "out").exists()


def test_a_model_of_non_overlapping_tokens_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_bert(tmp_path / "other", BertForMaskedLM)
    (other / "pretraining.json").write_text('{"config": {"data": {"overlap": false}}}')
    for overlapping in (True, False):
        open_embedder(other, ProbeSettings(model=(other,), data=other, output=tmp_path, overlapping=overlapping))
        assert ("other: was trained on non-overlapping" in capsys.readouterr().err) == overlapping
