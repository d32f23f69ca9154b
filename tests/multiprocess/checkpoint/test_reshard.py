"""A run that is resumed with another number of ranks or ZeRO stage equals a run without the change.

The checkpoint is converted automatically. Weight decay and learning rate are high, so that in fp32 a conversion that
loses settings or step counts would show in the losses. In bf16 it would not: the contents of the checkpoints are
compared.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases, read_metrics, run_ranks, write_prepared

from dnabert_rm.checkpoint.run_folder import step_folder
from dnabert_rm.cli.main import run_one
from dnabert_rm.export.consolidate import _pieces_of_stage_3, _pieces_of_stages_1_2, _rank_files, read_weights
from dnabert_rm.patches.deepspeed_patches import safe_torch_load

STEPS = 12
FLAGS = shlex.split(
    f"--preset tiny --model.num_layers 1 --model.hidden_size 64 --steps {STEPS} --global-batch 12 --window 66 "
    f"--workers 0 --log-every 1 --save-every {STEPS} --phase-ends 2,4,6,8,12 --lr 0.01 --optim.weight_decay 0.5"
)
SAMPLES = ("step", "consumed_samples", "masked_fraction", "mean_span", "phase", "max_span", "lr", "epoch")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return [*FLAGS, "--data", folder]


@pytest.fixture(scope="module")
def unchanged(flags, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Metrics of uninterrupted runs on two ranks under ZeRO-3, by precision."""
    folder = tmp_path_factory.mktemp("unchanged")
    for precision in ("fp32", "bf16"):
        run_ranks(2, *flags, "--precision", precision, "--output", folder / precision)
    return {precision: read_metrics(folder / precision) for precision in ("fp32", "bf16")}


def compare(run: Path, expected: list[dict], rtol: float) -> None:
    rows = read_metrics(run)
    for name in SAMPLES:
        assert [row[name] for row in rows] == [row[name] for row in expected], name
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in expected], rtol=rtol)


def optimizer_states(folder: Path, stage: int) -> list[dict]:
    """Return the optimizer state of each rank of a checkpoint, as torch's optimizer has it."""
    num_ranks = len(list(folder.glob("*optim_states.pt")))
    with safe_torch_load():
        states = [torch.load(path)["optimizer_state_dict"] for path in _rank_files(folder, num_ranks)]
    return [state["optimizer_state_dict" if stage == 3 else "base_optimizer_state"] | state for state in states]


def moments(folder: Path, stage: int, name: str) -> dict[str, torch.Tensor]:
    """Return a moment, "exp_avg" or "exp_avg_sq", of each weight of a checkpoint, flat."""
    states = optimizer_states(folder, stage)
    of_rank = [[state["state"][group][name] for group in range(len(state["state"]))] for state in states]
    with safe_torch_load():
        model = torch.load(next(folder.glob("*mp_rank_00_model_states.pt")))
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    pieces_of = _pieces_of_stage_3 if stage == 3 else _pieces_of_stages_1_2
    found = pieces_of(model["param_shapes"], [{**s, key: of} for s, of in zip(states, of_rank, strict=True)])
    return {weight: torch.cat(pieces) for weight, pieces in found.items()}


def check_contents(source: Path, still: Path, before: int, after: int) -> None:
    """Compare a checkpoint of step 5 with one that is a step later, in which neither gradient nor update counted.

    `before` and `after` are their ZeRO stages. The weights are equal, and each moment has decayed by its beta once.
    """
    saved, kept = (dict(read_weights(folder, "", quiet=True)) for folder in (source, still))
    assert saved.keys() == kept.keys()
    for name, weight in saved.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, kept[name]), name
    first, then = optimizer_states(source, before), optimizer_states(still, after)
    for states, step in ((first, 5), (then, 6)):
        assert {float(group["step"]) for state in states for group in state["state"].values()} == {step}
    settings = [
        [[group[name] for name in ("weight_decay", "betas", "eps")] for group in state["param_groups"]]
        for state in first + then
    ]
    assert settings == [[[0.5, (0.9, 0.98), 1e-6], [0.0, (0.9, 0.98), 1e-6]]] * len(settings)
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.98)):
        old, new = moments(source, before, name), moments(still, after, name)
        assert old.keys() == new.keys() and len(old) > 20
        for weight, moment in old.items():
            assert moment.dtype == new[weight].dtype == torch.float32 and moment.any()
            torch.testing.assert_close(new[weight], beta * moment, rtol=1e-6, atol=1e-24, msg=f"{name} of {weight}")


# A step with these flags updates no weight, and adds nothing to the moments.
STILL = ("--lr", "1e-30", "--optim.clip", "1e-30", "--stop-after", 6, "--allow-changes")


def test_two_one_three_and_four_ranks_give_the_same_losses(unchanged, flags, tmp_path: Path) -> None:
    words = [*flags, "--output", tmp_path / "run"]
    run_ranks(2, *words, "--stop-after", 3)
    for before, ranks, stop in ((2, 1, 6), (1, 3, 9), (3, 4, 12)):
        printed = run_ranks(ranks, *words, "--stop-after", stop)
        assert f"saved by {before} ranks under ZeRO stage 3; converting it for {ranks} ranks under stage 3" in printed
    compare(tmp_path / "run", unchanged["fp32"], rtol=2e-6)
    left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.suffix != ".py"}
    assert left == {"latest", "step_00000009", "step_00000012"}


@pytest.mark.parametrize(
    ("first", "then", "ranks", "precision"),
    [
        ("zero3", "zero1", 2, "fp32"),
        ("zero1", "zero3", 1, "fp32"),
        ("zero2", "zero3", 2, "fp32"),
        ("zero3", "zero1", 2, "bf16"),
        ("zero1", "zero3", 1, "bf16"),
    ],
)
def test_another_stage_gives_the_same_losses(
    unchanged, flags, tmp_path: Path, first: str, then: str, ranks: int, precision: str
) -> None:
    words = [*flags, "--precision", precision, "--output", tmp_path / "run"]
    run_ranks(2, *words, "--ds-config", first, "--stop-after", 5)
    source, still = step_folder(tmp_path / "run", 5), tmp_path / "still"
    run_ranks(ranks, *words, "--ds-config", then, "--resume", source, "--output", still, *STILL)
    check_contents(source, step_folder(still, 6), int(first[-1]), int(then[-1]))
    printed = run_ranks(ranks, *words, "--ds-config", then)
    assert f"under ZeRO stage {first[-1]}; converting it for {ranks} ranks under stage {then[-1]}" in printed
    compare(tmp_path / "run", unchanged[precision], rtol={"fp32": 2e-6, "bf16": 1e-3}[precision])


@pytest.mark.parametrize(
    ("stage", "before", "after", "first", "then"),
    [
        ("zero1", 1, 1, "bf16", "fp32"),
        ("zero1", 2, 2, "fp32", "bf16"),
        ("zero3", 1, 2, "fp32", "bf16"),
        ("zero3", 2, 2, "bf16", "fp32"),
    ],
)
def test_another_precision_keeps_the_fp32_weights_and_moments(
    unchanged, flags, tmp_path: Path, stage: str, before: int, after: int, first: str, then: str
) -> None:
    """A step that updates nothing leaves exactly the saved weights and moments, and the curve goes on."""
    words = [*flags, "--ds-config", stage, "--output", tmp_path / "run"]
    run_ranks(before, *words, "--precision", first, "--stop-after", 5)
    source = step_folder(tmp_path / "run", 5)
    words += ["--precision", then, "--allow-changes"]
    printed = run_ranks(after, *words, "--resume", source, "--output", tmp_path / "still", *STILL)
    assert f"stage {stage[-1]} in {first}; converting it for {after} ranks under stage {stage[-1]} in {then}" in printed
    check_contents(source, step_folder(tmp_path / "still", 6), int(stage[-1]), int(stage[-1]))
    run_ranks(after, *words)
    compare(tmp_path / "run", unchanged["fp32"], rtol=2e-3)
    left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.suffix != ".py"}
    assert left == {"latest", "step_00000005", "step_00000012"}


def test_stage_0_resumes_on_any_number_of_ranks_but_not_under_another_stage(unchanged, flags, tmp_path: Path) -> None:
    words = [*flags, "--output", tmp_path / "run"]
    run_ranks(2, *words, "--ds-config", "zero0", "--stop-after", 5)
    printed = run_ranks(1, *words, "--ds-config", "zero3", codes=[2])
    assert printed.count("error") == 1 and "stage 0 and the other stages; pass a --ds-config with stage 0" in printed
    # Without the flag it is as on a GPU, where precision "auto" is bf16, but fp32 at stage 0.
    for allowed in (["--allow-changes"], []):
        printed = run_ranks(1, *words, "--ds-config", "zero1", "--precision", "bf16", *allowed, codes=[2])
        assert printed.count("error") == 1
        assert "2 ranks under ZeRO stage 0 in fp32, and this run has stage 1" in printed
        assert "pass a --ds-config with stage 0 and --precision fp32" in printed
    run_ranks(1, *words, "--ds-config", "zero0")
    compare(tmp_path / "run", unchanged["fp32"], rtol=2e-6)


def test_after_a_batch_warm_up_the_number_of_ranks_need_not_divide_the_small_batches(flags, tmp_path: Path) -> None:
    words = [*flags, "--train.batch_start", 4, "--train.batch_warmup_steps", 4]  # batches of 4, 8 and, from step 4, 12
    run_ranks(4, *words, "--output", tmp_path / "unchanged")
    words += ["--output", tmp_path / "run"]
    run_ranks(4, *words, "--stop-after", 6)
    assert run_one("check", "dnabert-rm check", [*map(str, words), "--gpus", "3"]) == 0
    run_ranks(3, *words)
    compare(tmp_path / "run", read_metrics(tmp_path / "unchanged"), rtol=2e-6)
