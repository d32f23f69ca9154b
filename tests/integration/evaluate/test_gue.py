"""`gue` end to end: rows of GUE, a small random BERT, killed processes, and the table recomputed from predictions."""

import csv
import json
import subprocess
import sys
import time
from statistics import fmean

import numpy as np
import psutil
import pytest
import torch
from scipy.stats import sem, t
from sklearn.metrics import matthews_corrcoef
from support import ROOT, clean_environment, run_cli
from transformers import BertConfig, BertForMaskedLM

from dnabert_rm.cli.main import main
from dnabert_rm.finetune import pretrained_encoder as encoder
from dnabert_rm.tokenizer import KmerTokenizer

QUICK = ["--max-steps", "16", "--warmup-steps", "4", "--learning-rate", "5e-3", "--dropout", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "hf"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=69,
        max_position_embeddings=104,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with encoder.suppress_transformers_output():
        BertForMaskedLM(config).save_pretrained(folder)
        KmerTokenizer(3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(test_data, tmp_path_factory):
    """Rows of GUE: EMP/H3 has no train.csv, tf/2 has a row that is not DNA. mouse/0 is simulated, so that a few steps
    learn it; one of its rows is in train and in test."""
    root = tmp_path_factory.mktemp("gue")
    for name, splits in {"EMP/H3": "dev test", "tf/2": "train dev test", "mouse/0": "train dev test"}.items():
        (root / "GUE" / name).mkdir(parents=True)
        for split in splits.split():
            lines = (
                simulated_rows(split) if name == "mouse/0" else first_rows(test_data / "gue" / name / f"{split}.csv")
            )
            (root / "GUE" / name / f"{split}.csv").write_text("".join(["sequence,label\n", *lines]))
    with open(root / "GUE/tf/2/train.csv", "a") as stream:
        stream.write("ACGTX,1\n")
    with open(root / "GUE/mouse/0/test.csv", "a") as stream:
        stream.write(simulated_rows("train")[0])
    return root


def first_rows(path):
    return path.read_text().splitlines(keepends=True)[1:101]


def simulated_rows(split):
    """Sequences in which A is common in one class and T in the other."""
    seed, num_rows = {"train": (1, 160), "dev": (2, 60), "test": (3, 150)}[split]
    rng = np.random.default_rng(seed)
    weights = [(0.55, 0.15, 0.15, 0.15), (0.15, 0.55, 0.15, 0.15)]
    labels = rng.integers(2, size=num_rows)
    return [f"{''.join(rng.choice(list('ATCG'), 30, p=weights[label]))},{label}\n" for label in labels]


@pytest.fixture(scope="module")
def output(model, data, tmp_path_factory):
    """Output of a call over two seeds and two arms that was killed after its first run, then repeated."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    words = ["gue", "--model", model, "--data", data, "--output", folder, *QUICK, "--seeds", "1,2"]
    words += ["--arms", "pretrained,scratch"]
    kill_after_first_run(words, folder)
    [first] = (folder / "runs").rglob("scores.json")
    before = first.stat().st_mtime_ns
    second_call = run_cli("-m", "dnabert_rm.cli.main", *words, "--jobs", 2, timeout=500)
    assert second_call.returncode == 1, second_call.stderr
    assert first.stat().st_mtime_ns == before, "a finished run was repeated"
    return folder, words, second_call


def kill_after_first_run(words, folder):
    """Kill a call after its first run; before, a second call is refused; after, no process of it is left."""
    log = folder.parent / "killed.txt"
    with open(log, "w") as stream:
        call = subprocess.Popen(
            [sys.executable, "-m", "dnabert_rm.cli.main", *map(str, words)],
            cwd=ROOT,
            env=clean_environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 400
    while "MCC" not in log.read_text():
        assert call.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert main([str(word) for word in words]) == 2, "two calls in one folder"
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline:
        children = psutil.Process(call.pid).children(recursive=True)
    call.kill()
    call.wait()
    assert children and not psutil.wait_procs(children, timeout=20)[1]


def test_a_killed_call_continues(output):
    folder, _, call = output
    assert "runs: 8 in total, 1 finished before, 7 to do, 2 at a time on the CPU" in call.stderr
    assert "warning: EMP/H3: not run: train.csv missing; pass --stand-in to train on dev" in call.stderr
    failed = [line for line in call.stderr.splitlines() if "failed: exit code 2" in line]
    assert len(failed) == 4 and all("tf/2" in line and "'X' at base 5" in line for line in failed)
    assert "4 of 8 runs failed; repeat the command to retry them" in call.stderr
    assert call.stdout == (folder / "table.md").read_text()
    done = {path.parent.relative_to(folder / "runs").as_posix() for path in (folder / "runs").rglob("scores.json")}
    assert done == {f"mouse/0/{arm}/seed-{seed}" for arm in ("pretrained", "scratch") for seed in (1, 2)}
    left = {path.name for path in (folder / "runs/mouse/0/scratch/seed-2").iterdir()}
    assert left == {"scores.json", "gue_run.json", "predictions.csv", "log.txt", "tensorboard"}, "models are not kept"


def test_table_equals_scores_recomputed_from_predictions(output):
    folder, _, _ = output
    means, found = {}, {}
    for arm in ("pretrained", "scratch"):
        found[arm] = []
        for seed in (1, 2):
            with open(folder / f"runs/mouse/0/{arm}/seed-{seed}/predictions.csv") as stream:
                rows = list(csv.DictReader(stream))
            assert len(rows) == 151
            found[arm].append(100 * matthews_corrcoef(*([row[c] for row in rows] for c in ("label", "prediction"))))
        means[arm] = (fmean(found[arm]), t.ppf(0.975, 1) * sem(found[arm]))
    assert len({round(score, 6) for scores in found.values() for score in scores}) > 1, (
        "the model has not learnt anything"
    )
    with open(folder / "table.csv") as stream:
        rows = {row["arm"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {"pretrained", "scratch"}, "no published means without the complete family"
    for arm, (mean, half) in means.items():
        assert float(rows[arm]["mean"]) == pytest.approx(mean, abs=1e-4)
        assert float(rows[arm]["half_width_95"]) == pytest.approx(half, abs=1e-4)
        assert (rows[arm]["test_rows_in_train"], rows[arm]["seeds"]) == ("1", "2")
        assert f" {mean:.2f} ± {half:.2f} |" in (folder / "table.md").read_text()
    runs = json.loads((folder / "scores.json").read_text())["runs"]
    seen = [(run["arm"], run["seed"], 100 * run["metrics"]["test"]["mcc"], run["weights"]) for run in runs]
    assert seen == [
        (arm, seed, pytest.approx(score), "random" if arm == "scratch" else "pretrained")
        for arm, scores in found.items()
        for seed, score in zip((1, 2), scores, strict=True)
    ]
    assert all(run["settings"]["max_steps"] == 16 and run["settings"]["batch_size"] == 32 for run in runs)


def test_stand_ins_have_a_table_of_their_own(output):
    folder, words, _ = output
    more = [*words[:7], *QUICK, "--seeds", "1", "--sets", "EMP,mouse/0", "--stand-in", "--keep-models"]
    call = run_cli("-m", "dnabert_rm.cli.main", *more, timeout=300)
    assert call.returncode == 0, call.stderr
    assert "runs: 2 in total, 1 finished before, 1 to do" in call.stderr and "Failed" not in call.stdout
    scores = json.loads((folder / "runs/EMP/H3/pretrained/seed-1/scores.json").read_text())
    assert scores["data_set"] == "EMP/H3 (dev → test stand-in)"
    assert (scores["splits"]["train"]["rows"], scores["splits"]["dev"]["rows"]) == (90, 10)
    assert (folder / "runs/EMP/H3/pretrained/seed-1/model/config.json").is_file()
    runs = json.loads((folder / "scores.json").read_text())["runs"]
    assert [(run["data_set"], run["stand_in"]) for run in runs] == [("mouse/0", False)] * 4 + [("EMP/H3", True)]
    before, after = (folder / "table.md").read_text().split("## Stand-ins: trained on dev, tested on test")
    assert "EMP/H3" not in before and "| EMP/H3 (dev → test stand-in) | MCC × 100 |" in after
    assert "cut to their middle: EMP/H3" in after
    assert (folder / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_refuses_settings_other_than_those_of_finished_runs(output, capsys):
    folder, words, _ = output
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*.json"))
    assert main([*map(str, words), "--eval-steps", "4"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dnabert-rm gue: error")]
    assert "mouse/0/pretrained/seed-1: this finished run used eval_steps 200 instead of 4 (and 3 more runs)" in line
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*.json")) == before
