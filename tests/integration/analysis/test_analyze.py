"""`analyze` on real runs: figures and files agree with the runs' records and the models' outputs."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_runs import make_runs
from gue_folders import GUE, write_run
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import silhouette_score
from support import random_bases, read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import write_fasta
from transformers import AutoModelForMaskedLM

from dnabert_rm.analysis.curves import curves_figure, make_curves
from dnabert_rm.analysis.run_records import read_runs
from dnabert_rm.cli.main import main
from dnabert_rm.evaluate.suite_results import load_results
from dnabert_rm.evaluate.suite_tables import UnfinishedRuns, write_tables
from dnabert_rm.export.export_model import export
from dnabert_rm.tokenizer import KmerTokenizer

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def model(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(runs / "randommask", tmp_path_factory.mktemp("hf") / "model").folder


def analyze(*words: object) -> int:
    return main(["analyze", *map(str, words)])


@pytest.mark.parametrize("axis", ["steps", "tokens"])
def test_curves_draw_the_recorded_values(runs: Path, tmp_path: Path, axis: str, capsys) -> None:
    folders = [runs / "randommask", runs / "fixed"]
    picture = tmp_path / "new" / "curves.png"
    assert analyze("curves", *folders, "--names", "a,b", "--x", axis, "--smooth", 3, "--output", picture) == 0
    assert capsys.readouterr().out.split() == [str(picture), str(picture.with_suffix(".csv"))]
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open(picture.with_suffix(".csv")) as stream:
        rows = list(csv.DictReader(stream))
    for name, folder in zip("ab", folders, strict=True):
        recorded = read_metrics(folder)
        for curve in ("loss", "masked_accuracy", "lr"):
            own = [row for row in rows if (row["run"], row["curve"]) == (name, curve)]
            assert [float(row["value"]) for row in own] == [row[curve] for row in recorded]
            assert [int(row["tokens"]) for row in own] == [row["consumed_tokens"] for row in recorded]
    held_out = [row for row in rows if row["curve"].startswith("span_")]
    assert {(row["run"], row["curve"]) for row in held_out} == {("a", f"span_{m}") for m in (3, 5, 7, 9, 11)}
    figure = curves_figure(runs_ := read_runs(folders, "ab"), make_curves(runs_, 3), axis, 3)
    panels = {axes.get_title(loc="left"): axes for part in figure.subfigs for axes in part.axes}
    drawn = panels["span 7"].lines[0].get_xydata().tolist()
    key = "step" if axis == "steps" else "consumed_tokens"
    expected = [
        [row[key], row["validation"]["span_7"]["loss"]] for row in read_metrics(folders[0]) if "validation" in row
    ]
    assert drawn == expected and len(drawn) == 4
    caption = figure._supxlabel.get_text()
    assert "mean of the 3 logged steps" in caption and "Without held-out losses: b." in caption
    # 12 steps in phases that end at 3, 6, 9 and 12: the second and the fourth are shaded.
    bands = [patch.get_x() for patch in panels["training loss (nats per masked token)"].patches]
    assert bands == [start * (1 if axis == "steps" else 4 * 34) for start in (3, 9)]


def test_embeddings_are_scored_over_the_checkpoints(runs: Path, tmp_path: Path) -> None:
    assert analyze("embeddings", runs / "randommask") == 0
    folder = runs / "randommask" / "analysis"
    record = json.loads((folder / "embeddings.json").read_text())
    assert [entry["step"] for entry in record["silhouettes"]] == [4, 8, 12]
    for entry in record["silhouettes"]:
        saved = export(runs / "randommask", tmp_path / str(entry["step"]), entry["step"]).folder
        matrix = AutoModelForMaskedLM.from_pretrained(saved).get_input_embeddings().weight.detach().double().numpy()[5:]
        pairs = [word[1:3] for word in KmerTokenizer.from_pretrained(saved).get_vocab()][5:]
        assert entry["silhouette_cosine"] == pytest.approx(silhouette_score(matrix, pairs, metric="cosine"))
        assert entry["silhouette_euclidean"] == pytest.approx(silhouette_score(matrix, pairs))
    with open(folder / "embeddings.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["central_bases"] for row in rows] == [row["kmer"][1:3] for row in rows] and len(rows) == 64
    plane = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    score = silhouette_score(plane, [row["central_bases"] for row in rows])
    assert record["silhouettes"][-1]["silhouette_tsne"] == pytest.approx(score, abs=1e-3)
    assert all((folder / f"{name}.png").is_file() for name in ("embeddings", "embeddings_steps"))
    assert analyze("embeddings", runs / "randommask", "--steps", 8, "--output", tmp_path / "one") == 0
    assert not (tmp_path / "one" / "embeddings_steps.png").exists()


def test_attention_is_that_of_the_exported_model(runs: Path, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    bases = random_bases(rng, 96)
    fasta = write_fasta(tmp_path / "x.fa", {"a": bases})
    words = ["--fasta", fasta, "--window", 32, "--output", tmp_path / "out"]
    assert analyze("attention", model, *words) == 0
    record = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert (record["windows"], record["window"]) == (3, 32)
    stock = AutoModelForMaskedLM.from_pretrained(model, attn_implementation="eager").eval()
    tokenizer = KmerTokenizer.from_pretrained(model)
    found = []
    for start in (0, 32, 64):
        with torch.no_grad():
            inputs = tokenizer(bases[start : start + 32], return_tensors="pt")
            found.append([weights[0].numpy() for weights in stock(**inputs, output_attentions=True).attentions])
    for number, layer in enumerate(record["layers"]):
        rows = np.concatenate([one[number].reshape(-1, 32) for one in found])
        assert layer["entropy"] == pytest.approx(scipy_entropy(rows, axis=1).mean(), rel=1e-4)
        assert layer["entropy_share"] == pytest.approx(layer["entropy"] / np.log(32), rel=1e-6)
        assert layer["top5_mass"] == pytest.approx(np.sort(rows, axis=1)[:, -5:].sum(axis=1).mean(), rel=1e-4)
    assert analyze("attention", runs / "randommask", "--data", runs / "prepared", "--windows", 3, "--window", 20) == 0
    record = json.loads((runs / "randommask" / "analysis" / "attention.json").read_text())
    assert (record["step"], record["split"], record["windows"]) == (12, "val", 3)


def write_gue(folder: Path) -> Path:
    for seed, shift in ((1, 0.0), (2, 0.04)):
        write_run(folder, "mouse/0", "pretrained", seed, 0.6 + shift)
        write_run(folder, "EMP/H3", "pretrained", seed, 0.3 + shift, stand_in=True)
    write_tables(folder, GUE, load_results(folder, GUE), UnfinishedRuns({"tf/0": "no <train.csv>"}))
    return folder


def test_images_of_each_checkpoint_are_written_to_tensorboard_once(runs: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "randommask", run)
    later = run / "checkpoints" / "step_00000012"
    later.rename(tmp_path / "later")
    words = ["analyze", "images", str(run), "--data", str(runs / "prepared")]
    assert main(words) == 0
    (tmp_path / "later").rename(later)
    assert main([*words, "--follow"]) == 0  # ends after the checkpoint of the last step
    assert main(words) == 0
    assert capsys.readouterr().err.count(": done") == 3
    board = EventAccumulator(str(run / "tensorboard" / "images"), size_guidance={"images": 0}).Reload()
    for tag in ("embeddings/t-SNE of the k-mers", "attention/layers", "attention/maps"):
        assert [event.step for event in board.Images(tag)] == [4, 8, 12]
        assert min(min(event.width, event.height) for event in board.Images(tag)) > 300
    assert [event.step for event in board.Scalars("attention_entropy_share/layer_02")] == [4, 8, 12]
    # The run's own curves are unchanged.
    own = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in own.Scalars("train/loss")] == list(range(12))


def test_report_is_one_file_with_all_results(runs: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "report.html"
    (runs / "fixed" / "environment.json").rename(runs / "fixed" / "elsewhere.json")
    try:
        gue = write_gue(tmp_path / "gue")
        assert analyze("report", runs / "randommask", runs / "fixed", "--gue", gue, "--output", page) == 0
    finally:
        (runs / "fixed" / "elsewhere.json").rename(runs / "fixed" / "environment.json")
    text = page.read_text()
    assert not re.findall(r"<script|<link|(?:src|href)=\"(?!data:|#)", text)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert pictures and all(base64.b64decode(picture, validate=True).startswith(b"\x89PNG") for picture in pictures)
    plain = re.sub(r"<[^>]+>", "|", text)
    rows = read_metrics(runs / "randommask")
    assert f"{rows[-1]['validation']['span_5']['loss']:.4f}" in plain
    assert f"{np.mean([row['loss'] for row in rows if row['phase'] == rows[-1]['phase']]):.4f}" in plain
    assert f"{np.median([row['tokens_per_second'] for row in rows]):,.0f}" in plain
    assert "Fine-tuning on GUE" in plain and "62.00 ± 25.41" in plain and "tf/0: not run: no &lt;train.csv&gt;" in plain
    assert plain.index("Stand-ins: trained on dev") < plain.index("|EMP/H3|")
    assert "fixed has no held-out losses." in plain and "fixed has no environment.json." in plain
    for name in ("masking.policy", "packages.torch", "12 of 12", "complete"):
        assert name in plain
    differing = re.search(r'<tr class="differs">.*?masking\.policy.*?randommask.*?fixed', text)
    assert differing
    assert capsys.readouterr().err.count("note: ") >= 3


def test_a_report_of_an_incomplete_run_lists_what_is_missing(runs: Path, tmp_path: Path, capsys) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text((runs / "fixed" / "metrics.jsonl").read_text())
    assert analyze("report", bare, "--output", tmp_path / "report.html") == 0
    notices = capsys.readouterr().err
    for text in (
        "No run has held-out losses",
        "No GUE table",
        "no checkpoints",
        "no config.toml",
        "no environment.json",
    ):
        assert text in notices and text in (tmp_path / "report.html").read_text()
    assert "<h2>Configuration</h2>" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curves", "RUNS/none", "--output", "OUT/c.png"], "RUNS/none: no such folder"),
        (["curves", "RUNS/prepared", "--output", "OUT/c.png"], "metrics.jsonl: no such file"),
        (["curves", "RUNS/fixed", "--output", "OUT/c.bmp"], "must end in one of .png"),
        (["curves", "RUNS/fixed", "--smooth", "4", "--output", "OUT/c.png"], "--smooth 4"),
        (["embeddings", "RUNS/prepared"], "--output has no default"),
        (["embeddings", "RUNS/none", "--output", "OUT"], "no such folder"),
        (["embeddings", "RUNS/randommask", "--steps", "5"], "no checkpoint of this step; choose from 4, 8, 12"),
        (["attention", "RUNS/fixed", "--fasta", "OUT/none.fa"], "OUT/none.fa: no such file"),
        (["attention", "RUNS/fixed", "--data", "RUNS/prepared", "--split", "test"], "--split test"),
        (
            ["attention", "RUNS/fixed", "--data", "RUNS/prepared", "--window", "900"],
            "the model has only 64 positions; pass at most 64",
        ),
        (["report", "RUNS/fixed", "--gue", "RUNS/prepared", "--output", "OUT/r.html"], "table.csv: no such file"),
        (["report", "RUNS/fixed", "--output", "OUT"], "is a folder"),
        (["report", "RUNS/fixed", "--output", "RUNS/fixed/metrics.jsonl"], "the file name must end in .html"),
        (["masking", "--k", "99", "--output", "OUT/m.png"], "--k 99"),
        (["curves", "RUNS/fixed", "--output", "/proc/c.png"], "/proc/c.png"),
    ],
)
def test_a_mistake_is_one_line(runs: Path, tmp_path: Path, capsys, words: list[str], message: str) -> None:
    real = {"RUNS": str(runs), "OUT": str(tmp_path)}
    for name, path in real.items():
        words = [word.replace(name, path) for word in words]
        message = message.replace(name, path)
    assert analyze(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("dnabert-rm analyze: error: ")


def test_compare_draws_the_results_of_each_run(tmp_path: Path, capsys) -> None:
    """Two folders with the files of `analyze embeddings` and `analyze attention`; the second is given directly."""
    for name, rise in (("a", 0.1), ("b", 0.2)):
        folder = tmp_path / name / "analysis"
        folder.mkdir(parents=True)
        scores = [
            {"step": step, "silhouette_cosine": rise * step - 0.06, "silhouette_cosine_shuffled": -0.06}
            for step in (1, 2)
        ]
        layers = [{"entropy_share": rise * n, "top5_mass": 0.5, "top5_mass_of_window": 0.25} for n in (1, 2, 3)]
        (folder / "embeddings.json").write_text(json.dumps({"silhouettes": scores}))
        (folder / "attention.json").write_text(json.dumps({"layers": layers}))
    picture = tmp_path / "compare.png"
    assert (
        analyze("compare", tmp_path / "a", tmp_path / "b" / "analysis", "--names", "one,two", "--output", picture) == 0
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open(picture.with_suffix(".csv")) as stream:
        rows = {(row["run"], row["what"], int(row["at"])): float(row["value"]) for row in csv.DictReader(stream)}
    assert len(rows) == 2 * (2 + 3 * 3)
    assert rows["two", "silhouette_above_chance", 2] == pytest.approx(0.4)
    assert rows["one", "entropy_share", 3] == pytest.approx(0.3) and rows["two", "top5_mass_of_window", 1] == 0.25
    (tmp_path / "b" / "analysis" / "attention.json").unlink()
    capsys.readouterr()
    assert analyze("compare", tmp_path / "b", "--output", picture) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run `dnabert-rm analyze attention`" in error
