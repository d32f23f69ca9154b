"""Validation at fixed spans: exact over ranks, the same for every run on the data, and in the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from support import random_bases, read_metrics, run_ranks, write_prepared
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM

from dnabert_rm.config import resolve
from dnabert_rm.data.dataset import make_validation_dataset
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.evaluate.bits import evaluate_bits
from dnabert_rm.evaluate.bits_settings import BitsSettings
from dnabert_rm.export.export_model import export
from dnabert_rm.train.validation import make_validation_collators, validation_batches

FLAGS = ["--preset", "tiny", "--model.num_layers", 1, "--model.hidden_size", 64, "--steps", 6, "--global-batch", 8,
         "--window", 66, "--workers", 0, "--log-every", 4, "--save-every", 3, "--validation.every", 3,
         "--validation.windows", 11]  # fmt: skip
CURVES = [f"span_{span}" for span in (4, 6, 8, 10, 12)]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4, splits={1: "val"})
    return [*map(str, FLAGS), "--data", folder]


@pytest.fixture(scope="module")
def two_ranks(flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    run_ranks(2, *flags, "--output", run)
    return run


def held_out(run: Path) -> dict[int, dict]:
    return {row["step"]: row["validation"] for row in read_metrics(run) if "validation" in row}


def flat(values: dict, prefix: str = "") -> dict[str, float]:
    """Return all numbers of nested dictionaries, keyed by path."""
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("num_windows", [1, 2, 11, 32])
def test_every_window_counts_once_and_all_ranks_have_as_many_batches(world_size: int, num_windows: int) -> None:
    ranks = [Ranks(rank, world_size, 0, 1, torch.device("cpu")) for rank in range(world_size)]
    parts = [validation_batches(num_windows, rank, 4) for rank in ranks]
    assert len({len(part) for part in parts}) == 1
    counted = np.concatenate([samples for part in parts for samples, is_counted in part if is_counted])
    assert sorted(counted) == list(range(num_windows))
    assert all(0 < len(samples) <= 4 for part in parts for samples, _ in part)


def test_one_rank_and_a_resume_on_four_have_the_results_of_two_ranks(two_ranks: Path, flags, tmp_path: Path) -> None:
    expected = held_out(two_ranks)
    assert list(expected) == [2, 5]
    assert all(list(found)[: len(CURVES)] == CURVES for found in expected.values())
    run_ranks(1, *flags, "--output", tmp_path / "one", "--ds-config", "zero1")
    run_ranks(2, *flags, "--output", tmp_path / "again", "--stop-after", 3)
    run_ranks(4, *flags, "--output", tmp_path / "again")
    for run in (tmp_path / "one", tmp_path / "again"):
        for step, found in held_out(run).items():
            assert found.keys() == expected[step].keys() >= {"bits_per_base", "markov", "composition"}
            for name, values in flat(found).items():
                assert values == pytest.approx(flat(expected[step])[name], rel=1e-5), (run, step, name)


def test_the_loss_is_the_exported_models_on_the_held_out_windows(two_ranks: Path, flags, tmp_path: Path) -> None:
    export(two_ranks, tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    config = resolve({"data": {"path": [str(flags[-1])], "window": 66}, "train": {"output": "x", "seed": 7}})
    dataset = make_validation_dataset(config)
    samples = np.arange(11)
    assert {place["contig"] for place in dataset.coordinates(samples, 0)} <= {f"contig{n}" for n in range(4, 8)}
    windows = dataset.windows(samples, 0).ids
    for name, collate in make_validation_collators(config, dataset).items():
        masked = collate.mask(samples, windows)
        labels = torch.from_numpy(masked.labels())
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(masked.input_ids)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten())
        assert held_out(two_ranks)[5][name]["loss"] == pytest.approx(float(loss), rel=1e-5), name


def test_bits_are_the_exported_models_and_the_lines_are_read_again(two_ranks: Path, flags, tmp_path: Path) -> None:
    export(two_ranks, tmp_path / "model")
    data = str(flags[-1])
    (stored,) = Path(data, "reference_lines").iterdir()
    before = stored.stat().st_mtime_ns
    results = evaluate_bits(BitsSettings(model=(tmp_path / "model",), data=(data,), by=("strand",)))
    assert stored.stat().st_mtime_ns == before
    expected = held_out(two_ranks)[5]
    rows = {row["name"]: row["bits"] for row in results["rows"] if row["group"] == "strand +"}
    assert rows[str(tmp_path / "model")] == pytest.approx(expected["bits_per_base"], rel=1e-5)
    lines = {row["name"]: row["bits"] for row in results["rows"] if row["group"] == "all"}
    assert lines["composition"] == pytest.approx(expected["composition"])
    markov = {f"markov_{order}": bits for order, bits in expected["markov"].items()}
    assert flat(markov) == pytest.approx(flat({name: bits for name, bits in lines.items() if name in markov}))


def test_intervals_over_regions_are_those_of_the_exported_model(two_ranks: Path, flags, tmp_path: Path) -> None:
    export(two_ranks, tmp_path / "model")
    results = evaluate_bits(BitsSettings(model=(tmp_path / "model",), data=(str(flags[-1]),)))
    (row,) = [row for row in results["rows"] if row["name"] == str(tmp_path / "model")]
    expected = held_out(two_ranks)[5]
    quantile = scipy.stats.t.ppf(0.975, results["regions"] - 1)
    best = results["best_line"].removeprefix("markov_")
    for found, errors in (
        (expected["bits_half_width"], row["standard_error"]),
        (expected["markov_half_width"][best], row["minus_line_error"]),
    ):
        assert found == pytest.approx({n: quantile * error for n, error in errors.items()}, rel=1e-4)
    assert 0 < expected["markov_half_width"][best]["5"] != expected["bits_half_width"]["5"]


def test_tensorboard_has_one_curve_per_span_by_steps_and_by_tokens(two_ranks: Path) -> None:
    board = EventAccumulator(str(two_ranks / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    rows = read_metrics(two_ranks)
    assert [row["step"] for row in rows] == [0, 2, 4, 5]  # logged steps, and those with a validation
    for name in CURVES:
        points = {event.step: event.value for event in board.Scalars(f"validation_loss/{name}")}
        assert points == pytest.approx({step: found[name]["loss"] for step, found in held_out(two_ranks).items()})
    assert [event.step for event in board.Histograms("train_masking/spans")] == [0, 2, 4, 5]
    assert "validation_loss/.*" in str(board.Tensors("custom_scalars__config__")[0].tensor_proto)
    by_tokens = EventAccumulator(str(two_ranks / "tensorboard" / "by_tokens")).Reload()
    assert [event.step for event in by_tokens.Scalars("x_tokens/train/loss")] == [8 * 66 * n for n in (1, 3, 5, 6)]


def test_validation_does_not_change_the_training(two_ranks: Path, flags, tmp_path: Path) -> None:
    printed = run_ranks(2, *flags, "--output", tmp_path / "run", "--validation.every", 0, "--model.dropout", 0.1)
    verdict = run_ranks(2, *flags, "--output", tmp_path / "with", "--model.dropout", 0.1)
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(tmp_path / name) if row["step"] in (0, 4, 5)}
        for name in ("run", "with")
    ]
    assert losses[0] == losses[1] and "validation" not in str(read_metrics(tmp_path / "run"))
    assert "no validation" not in printed
    assert "after 6 steps" in verdict and "after 6 steps" not in printed, "a validated run ends with its verdict"


def test_data_without_a_held_out_split_are_reported(flags, tmp_path: Path) -> None:
    printed = run_ranks(1, *flags, "--output", tmp_path / "run", "--validation.split", "test")
    assert "no validation: the data have no segment of split test that is as long as a window" in printed
    assert held_out(tmp_path / "run") == {}


def test_a_held_out_split_shorter_than_a_window_is_no_validation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = [[random_bases(rng, 700) for _ in range(4)], [random_bases(rng, 40)]]
    write_prepared(tmp_path / "prepared", shards, k=4, splits={1: "val"})
    words = [*map(str, FLAGS), "--data", tmp_path / "prepared", "--output", tmp_path / "run"]
    assert "no validation" in run_ranks(1, *words)


def test_a_damaged_held_out_shard_is_reported_by_the_rank_that_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = [[random_bases(rng, 700) for _ in range(4)] for _ in range(2)]
    write_prepared(tmp_path / "prepared", shards, k=4, splits={1: "val"})
    shard = tmp_path / "prepared" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"contig", b"CONTIG"))
    words = [*map(str, FLAGS), "--data", tmp_path / "prepared", "--output", tmp_path / "run"]
    printed = run_ranks(2, *words, codes=[2, 2])
    assert printed.count("shard-000001.tar") == 2 and "Traceback" not in printed
