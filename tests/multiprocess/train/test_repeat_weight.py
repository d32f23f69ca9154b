"""Runs with a weight for soft-masked bases: the same losses however the batch is split, and no error if all weigh 0."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, random_repeats, read_metrics, run_cli, run_ranks, write_prepared

STEPS = 8
FLAGS = ["--preset", "tiny", "--steps", STEPS, "--global-batch", 8, "--window", 66, "--log-every", 1, "--save-every", 4,
         "--model.num_layers", 1, "--model.hidden_size", 64, "--phase-ends", "2,4,6,8", "--strand", "random",
         "--validation.every", 4]  # fmt: skip


def flags(folder: Path, weight: float) -> list[str]:
    return [*map(str, FLAGS), "--data", str(folder), "--data.repeat_weight", str(weight)]


def rows_of(run: Path) -> list[tuple[float, ...]]:
    """Return losses, accuracy and gradient norm of each step."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    return [tuple(row[name] for name in ("loss", "token_loss", "masked_accuracy", "grad_norm")) for row in rows]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the bases are soft-masked. A held-out shard has none."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    rng = np.random.default_rng(0)
    shards = [[random_repeats(rng, 700) for _ in range(4)] for _ in range(3)]
    write_prepared(folder, [*shards, [random_bases(rng, 700)]], k=4, splits={3: "val"}, soft_mask=True)
    return folder


@pytest.fixture(scope="module")
def two_ranks(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two_ranks") / "run"
    run_ranks(2, *flags(prepared, 0.1), "--loss", "both", "--output", run)
    return run


@pytest.mark.parametrize(("micro_batch", "workers"), [(8, 0), (2, 2)])
def test_one_rank_has_the_same_losses(two_ranks: Path, prepared: Path, tmp_path: Path, micro_batch, workers) -> None:
    split = ["--micro-batch", str(micro_batch), "--workers", str(workers)]
    run_ranks(1, *flags(prepared, 0.1), "--loss", "both", "--output", tmp_path / "run", *split)
    np.testing.assert_allclose(rows_of(tmp_path / "run"), rows_of(two_ranks), rtol=1e-5)


def test_a_stopped_run_resumes_bit_for_bit_and_keeps_its_weight(
    two_ranks: Path, prepared: Path, tmp_path: Path
) -> None:
    words = ["--loss", "both", "--output", tmp_path / "run"]
    run_ranks(2, *flags(prepared, 0.1), *words, "--stop-after", "3")
    changed = run_cli("-m", "dnabert_rm", "check", *flags(prepared, 0.2), *words)
    assert changed.returncode == 2 and "data.repeat_weight was 0.1 and is 0.2" in changed.stderr
    run_ranks(2, *flags(prepared, 0.1), *words)
    assert rows_of(tmp_path / "run") == rows_of(two_ranks)


def test_the_weights_change_the_training_loss_only(prepared: Path, tmp_path: Path) -> None:
    """The weights of the model hardly change in this run. Masks, accuracy and validation are those of weight 1."""
    for weight in (0.1, 1):
        words = ["--output", tmp_path / str(weight), "--lr", "1e-30", "--validation.every", "1", "--stop-after", "1"]
        run_ranks(1, *flags(prepared, weight), *words)
    weighted, plain = (read_metrics(tmp_path / name)[0] for name in ("0.1", "1"))
    assert weighted["loss"] != plain["loss"] and weighted["grad_norm"] != plain["grad_norm"]
    assert math.isclose(weighted["loss"], plain["loss"], rel_tol=0.05)  # the mean of an untrained model
    # Two processes can differ in the rounding of bits per base. It was seen once, on a busy machine.
    bits = [row["validation"].pop("bits_per_base") for row in (weighted, plain)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-6)
    for name in ("masked_accuracy", "base_accuracy", "masked_fraction", "validation"):
        assert weighted[name] == plain[name]


def test_only_the_ratio_of_weights_matters_and_weight_zero_gives_loss_zero(tmp_path: Path) -> None:
    """If all bases are soft-masked, weight 0.3 is weight 1."""
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_bases(rng, 700).lower() for _ in range(4)]], k=4, soft_mask=True)
    for weight in (0, 0.3, 1):
        # One thread, because two may round sums differently from run to run.
        words = [*flags(tmp_path / "data", weight), "--train.threads_per_rank", "1"]
        run_ranks(1, *words, "--output", tmp_path / str(weight))
    np.testing.assert_allclose(rows_of(tmp_path / "0.3"), rows_of(tmp_path / "1"), rtol=1e-6)
    for loss, token_loss, accuracy, grad_norm in rows_of(tmp_path / "0"):
        assert (loss, token_loss, grad_norm) == (0, 0, 0) and 0 <= accuracy <= 1
