"""ZeRO-3 runs on gloo ranks: the same losses however the batch is split, exact resume, checked export.

The run `two_ranks` is shared by the tests and started by DeepSpeed's own launcher.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import (
    free_port,
    random_bases,
    read_metrics,
    rewrite_manifest,
    run_cli,
    run_launcher,
    run_ranks,
    write_prepared,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM

STEPS = 16
FLAGS = ["--preset", "tiny", "--steps", STEPS, "--global-batch", 8, "--window", 66, "--log-every", 1, "--save-every", 8,
         "--model.num_layers", 1, "--model.hidden_size", 64, "--phase-ends", "2,4,6,8,16"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return folder


@pytest.fixture(scope="module")
def flags(prepared: Path) -> list[str | Path]:
    return [*map(str, FLAGS), "--data", prepared]


@pytest.fixture(scope="module")
def two_ranks(flags: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 ranks x 1 accumulation, started by the literal command of the README."""
    run = tmp_path_factory.mktemp("two_ranks") / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launch_scripts/pretrain.sh"]
    run_launcher([*command, *flags, "--output", run])
    return run


def losses(run: Path) -> list[float]:
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    return [row["loss"] for row in rows]


def test_one_rank_with_accumulation_has_the_same_losses(two_ranks: Path, flags, tmp_path: Path) -> None:
    """Started by bash, which starts DeepSpeed's launcher."""
    command = ["bash", "launch_scripts/pretrain.sh", *flags, "--output", tmp_path / "run", "--micro-batch", "4"]
    run_launcher(command, DEEPSPEED_ARGS=f"--num_gpus 1 --master_port {free_port()}")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(two_ranks), rtol=2e-6)


def test_one_rank_with_twice_the_micro_batch_has_the_same_losses(two_ranks: Path, flags, tmp_path: Path) -> None:
    run_ranks(1, *flags, "--output", tmp_path / "run", "--micro-batch", "8", "--workers", "0")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(two_ranks), rtol=2e-6)


def test_a_stopped_run_resumes_bit_for_bit(two_ranks: Path, flags, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = run_ranks(2, *flags, "--output", run, "--stop-after", "5")
    assert "done: step 5 of 16, loss " in printed and "run the same command without --stop-after" in printed
    assert [row["step"] for row in read_metrics(run)] == list(range(5))
    printed = run_ranks(2, *flags, "--output", run)
    assert "resuming at step 5 of 16" in printed and "built successfully" not in printed
    last = f"loss {np.mean(losses(run)[-8:]):.3f} (mean of the last 8 logged steps)"
    assert f"done: step 16 of 16, {last}; next: dnabert-rm export {run} --output HFDIR" in printed
    assert losses(run) == losses(two_ranks)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(STEPS))


def test_the_run_folder_has_metrics_and_checkpoints(two_ranks: Path, prepared: Path) -> None:
    rows = read_metrics(two_ranks)
    assert [row["phase"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4] + [5] * 8
    assert [row["max_span"] for row in rows[::2]] == [4, 6, 8, 10, 12, 12, 12, 12]
    assert [row["consumed_samples"] for row in rows] == [8 * (step + 1) for step in range(STEPS)]
    needed = {
        "step",
        "consumed_samples",
        "loss",
        "lr",
        "grad_norm",
        "phase",
        "masked_fraction",
        "masked_accuracy",
        "tokens_per_second",
    }
    assert needed <= rows[0].keys()
    tags = EventAccumulator(str(two_ranks / "tensorboard")).Reload().Tags()["scalars"]
    for tag in (
        "train/loss",
        "train/learning_rate",
        "train_masking/phase",
        "train_masking/mean_span",
        "train_masking/masked_fraction",
        "train/masked_accuracy",
        "train/tokens_per_second",
    ):
        assert tag in tags
    assert json.loads((two_ranks / "environment.json").read_text())["world_size"] == 2
    assert sorted(path.name for path in (two_ranks / "checkpoints").glob("step_*")) == [
        "step_00000008",
        "step_00000016",
    ]


def test_the_export_is_the_trained_model(two_ranks: Path, tmp_path: Path) -> None:
    done = run_cli("-m", "dnabert_rm.cli.main", "export", two_ranks, "--output", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.cls.predictions.decoder.weight.data_ptr() == model.bert.embeddings.word_embeddings.weight.data_ptr()
    with np.load(two_ranks / "checkpoints" / "step_00000016" / "probe.npz") as probe:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(probe["input_ids"])).logits.flatten(0, 1)
        np.testing.assert_allclose(logits[probe["positions"]].numpy(), probe["logits"], atol=1e-5)


def test_a_wrong_export_is_refused_and_leaves_no_files(two_ranks: Path, tmp_path: Path) -> None:
    """Another step's reference output has the effect of weights that are not the trained ones."""
    run = tmp_path / "run"
    shutil.copytree(two_ranks, run)
    steps = [run / "checkpoints" / f"step_{step:08d}" / "probe.npz" for step in (8, 16)]
    shutil.copy(steps[0], steps[1])
    rewrite_manifest(steps[1].parent)
    done = run_cli("-m", "dnabert_rm.cli.main", "export", run, "--output", tmp_path / "model")
    assert done.returncode == 2 and "logits differ" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--seed", "7"], "train.seed was 42 and is 7"),
        (["--lr", "0.5"], "optim.lr was 0.002 and is 0.5"),
        (["--resume", "never"], "--resume is never"),
    ],
)
def test_a_changed_setting_is_refused(two_ranks: Path, flags, change: list[str], reason: str) -> None:
    done = run_cli("launch_scripts/pretrain.sh", *flags, "--output", two_ranks, *change)
    assert done.returncode == 2 and reason in done.stderr
    assert done.stderr.count("\n") == 1  # by `check_run`, before any other output
    checked = run_cli("-m", "dnabert_rm", "check", *flags, "--output", two_ranks, *change)
    assert checked.returncode == 2 and reason in checked.stderr


def test_other_data_are_refused_with_the_overriding_flag(two_ranks: Path, flags, tmp_path: Path) -> None:
    write_prepared(tmp_path / "other", [[random_bases(np.random.default_rng(1), 700)]], k=4)
    done = run_cli("launch_scripts/pretrain.sh", *flags, "--output", two_ranks, "--data", tmp_path / "other")
    assert done.returncode == 2
    assert "other data" in done.stderr and "--allow-changes" in done.stderr


def test_a_checkpoint_that_would_run_code_is_refused(two_ranks: Path, flags, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    run = tmp_path / "run"
    shutil.copytree(two_ranks, run)
    folder = run / "checkpoints" / "step_00000016"
    for path in folder.glob("*_states.pt"):
        torch.save({"module": Evil()}, path)
    rewrite_manifest(folder)
    done = run_cli("-m", "dnabert_rm.cli.main", "export", run, "--output", tmp_path / "model")
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "evil").exists()
