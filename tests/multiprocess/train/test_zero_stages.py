"""The same losses for every shipped DeepSpeed configuration, and for every way to build and run the model."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, on_ranks, random_bases, read_metrics, run_ranks, write_prepared

from dnabert_rm.checkpoint.run_folder import step_folder
from dnabert_rm.export.consolidate import read_weights

STEPS = 20
FLAGS = ["--preset", "tiny", "--steps", STEPS, "--global-batch", 8, "--window", 66, "--log-every", 1, "--save-every",
         STEPS, "--workers", 0, "--phase-ends", "2,4,6,8,20"]  # fmt: skip
SHIPPED = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return [*map(str, FLAGS), "--data", folder]


def curve(run: Path, ranks: int, *words: str | Path) -> list[float]:
    """Return the losses of a run's 20 steps."""
    # The first run compiles DeepSpeed's offloading extensions, which takes two cores four minutes.
    printed = run_ranks(ranks, *words, "--output", run, timeout=580)
    assert printed.count("compiled the layers: the first step took") == ("--model.compile" in words), printed
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert all(row["grad_norm"] > 0 for row in rows)
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses on one rank without ZeRO, in fp32."""
    return curve(tmp_path_factory.mktemp("reference") / "run", 1, *flags, "--ds-config", "zero0")


def usable(name: str, folder: Path) -> list[str | Path]:
    """Return the flags of a shipped configuration, without settings that this machine cannot run; skip if it can't."""
    path = ROOT / "ds_configs" / f"{name}.json"
    if name == "zero3_nvme":
        if not ctypes.util.find_library("aio") or not Path("/usr/include/libaio.h").exists():
            pytest.skip("offload to a disk needs libaio's headers (Debian: libaio-dev)")
        return ["--ds-config", name, "--train.offload_dir", folder]
    if name == "zeropp" and not torch.cuda.is_available():
        # ZeRO++'s quantization needs CUDA; its secondary copy of the weights within a node runs anywhere.
        settings = json.loads(path.read_text())
        settings["zero_optimization"] |= {"zero_quantized_weights": False, "zero_quantized_gradients": False}
        path = folder / path.name
        path.write_text(json.dumps(settings))
    return ["--ds-config", path]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_has_the_same_losses(
    reference, flags, tmp_path: Path, name: str, ranks: int
) -> None:
    found = curve(tmp_path / "run", ranks, *flags, *usable(name, tmp_path))
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_the_stages_agree_to_rounding_in_bf16(reference, flags, tmp_path: Path, name: str) -> None:
    found = curve(tmp_path / "run", 2, *flags, "--ds-config", name, "--precision", "bf16")
    np.testing.assert_allclose(found, reference, rtol=0, atol=3e-3)


@pytest.fixture(scope="module")
def small_updates(flags, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What 20 steps of `SMALL_UPDATES` add to each weight, on one rank in fp32."""
    return movement(tmp_path_factory.mktemp("small"), 1, *flags, "--ds-config", "zero0")


# Adam changes a weight by about this learning rate per step. Next to a weight of 0.02, bf16 can't represent 20 of them.
SMALL_UPDATES = ("--lr", "1e-6", "--optim.warmup_steps", "0", "--optim.weight_decay", "0")


def movement(folder: Path, ranks: int, *words: str | Path) -> dict[str, torch.Tensor]:
    """Return what a run adds to each weight matrix, from its checkpoints of step 1 and of the last step."""
    words = (*words, *SMALL_UPDATES, "--save-every", "1", "--train.keep_last", "0")
    curve(folder / "run", ranks, *words)
    first, last = (dict(read_weights(step_folder(folder / "run", step), "", quiet=True)) for step in (1, STEPS))
    return {name: last[name] - weight for name, weight in first.items() if weight.dim() == 2}


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_updates_too_small_for_bf16_are_not_lost(small_updates, flags, tmp_path: Path, name: str) -> None:
    """They add up in fp32 master weights. Gradients in bf16 change the direction of the updates a little."""
    found = movement(tmp_path, 2, *flags, "--ds-config", name, "--precision", "bf16")
    assert found.keys() == small_updates.keys()
    for weight, expected in small_updates.items():
        assert found[weight].dtype == torch.float32
        error = (found[weight] - expected).norm() / expected.norm()
        assert error < 0.05, (weight, error)


@pytest.mark.parametrize(
    "words",
    [["--model.activation_checkpointing"], ["--model.compile", "--ds-config", "zero2"], ["--model.attention", "eager"]],
    ids=lambda words: words[0],
)
def test_other_ways_to_run_a_layer_have_the_same_losses(reference, flags, tmp_path: Path, words: list[str]) -> None:
    np.testing.assert_allclose(curve(tmp_path / "run", 2, *flags, *words), reference, rtol=0, atol=1e-5)


def test_a_batch_warm_up_has_the_same_losses_for_any_split(flags, tmp_path: Path) -> None:
    """Batches of 4, 8 and 12 windows: 1, 2 and 3 micro-batches, of 2 windows on two ranks and of 4 on one."""
    words = [*flags, "--global-batch", 12, "--train.batch_start", 4, "--train.batch_warmup_steps", 10, "--ds-config"]
    one = curve(tmp_path / "one", 1, *words, "zero2", "--micro-batch", 4)
    two = curve(tmp_path / "two", 2, *words, "zero3", "--micro-batch", 2)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    rows = read_metrics(tmp_path / "two")
    assert [row["global_batch"] for row in rows] == [4] * 5 + [8] * 5 + [12] * 10
    assert rows[-1]["consumed_samples"] == 20 + 40 + 120


def test_a_partitioned_build_has_the_same_weights_for_any_number_of_ranks(flags, tmp_path: Path) -> None:
    words = [*flags, "--model.build", "partitioned"]
    np.testing.assert_allclose(
        curve(tmp_path / "two", 2, *words), curve(tmp_path / "one", 1, *words), rtol=0, atol=1e-5
    )


def test_a_non_finite_loss_ends_the_run_before_the_update(flags, tmp_path: Path) -> None:
    """A huge learning rate ruins the weights in the first update; the second step must not update them."""
    words = [*flags, "--lr", "1e30", "--optim.clip", "0", "--save-every", "1", "--output", tmp_path / "run"]
    printed = run_ranks(2, *words, codes=[2, 2])
    errors = [line for line in printed.splitlines() if "error" in line]
    assert len(errors) == 1, printed
    step = len(read_metrics(tmp_path / "run"))
    assert 1 <= step < STEPS
    assert f"over the samples {8 * step} to {8 * step + 7}; the weights were not updated" in errors[0]
    assert f"show-batch --step {step}" in errors[0]
    assert not (tmp_path / "run" / "checkpoints" / f"step_{step + 1:08d}").exists()


SIZES = {
    "architecture": "bert",
    "vocab_size": 4101,
    "hidden_size": 512,
    "num_layers": 16,
    "num_heads": 8,
    "intermediate_size": 2048,
    "max_positions": 512,
    "dropout": 0.0,
}


def built_bytes(ranks, partitioned: bool) -> tuple[int, int]:
    """Return how much a rank's memory grew at its peak while the model was built, and the model's bytes in fp32."""
    from dnabert_rm.model.build import build_model, transformers_config
    from dnabert_rm.train.build_engine import partitioned_build

    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    config = transformers_config(**SIZES)
    with torch.device("meta"):
        size = 4 * build_model(config, 0).num_parameters()
    # By default glibc keeps freed blocks of up to 32 MB. Returned at once, the resident memory is the memory in use.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # -3: M_MMAP_THRESHOLD
    # The first build loads code and starts threads, whose memory must not be counted.
    with partitioned_build(settings) if partitioned else contextlib.nullcontext():
        build_model(transformers_config(**(SIZES | {"num_layers": 1})), 0)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        model = build_model(config, 0)
    peak = memory("VmHWM")
    assert sum(p.ds_numel if partitioned else p.numel() for p in model.parameters()) * 4 == size
    return peak - before, size


def memory(field: str) -> int:
    """Return a field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_a_rank_of_four_builds_in_a_quarter_of_the_memory() -> None:
    whole = on_ranks(1, built_bytes, False)[0]
    parts = on_ranks(4, built_bytes, True)
    print(
        f"model {whole[1] / 1e6:.0f} MB; built whole {whole[0] / 1e6:.0f} MB, by four ranks "
        + ", ".join(f"{grown / 1e6:.0f}" for grown, _ in parts)
    )
    assert whole[0] > 0.95 * whole[1]
    for grown, size in parts:
        assert 0.2 * size < grown < 0.4 * size


def updates(ranks, data: Path, name: str, spoiled: str, value: float) -> list[tuple[float, int, bool]]:
    """Run two steps in bf16; in the first, multiply the gradient of `spoiled` by `value` on rank 0.

    Return for each step the number of updates it skipped, the number skipped so far, and whether a weight changed.
    """
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.data.batching import BatchPlan, split_batch
    from dnabert_rm.model.build import build_model, transformers_config
    from dnabert_rm.model.mlm import MaskedLM
    from dnabert_rm.train.build_engine import make_engine
    from dnabert_rm.train.deepspeed_settings import ds_settings

    fields = {"data": {"path": [str(data)]}, "train": {"output": "unused", "ds_config": name, "precision": "bf16"}}
    config = resolve(load_preset("tiny"), fields)
    split = split_batch(BatchPlan.constant(ranks.world_size), 1, ranks.world_size)
    network = build_model(transformers_config(**(SIZES | {"hidden_size": 32, "num_layers": 2, "num_heads": 2})), 0)
    settings = ds_settings(config, split, "bf16", ranks.local_world_size)
    engine = make_engine(MaskedLM(network, 6), config, settings, ranks)
    engine.set_learning_rate(1e-2)
    ids, positions = torch.full((1, 16), 100 + ranks.rank), torch.arange(4)
    factors = [value if ranks.rank == 0 else 1.0, 1.0]
    parameter = dict(engine.module.named_parameters())[spoiled]
    parameter.register_hook(lambda gradient: gradient * factors[0])
    found = []
    while factors:
        before = [p.detach().clone() for p in engine.module.parameters()]
        loss = engine(ids, positions, ids.flatten()[positions])[0]
        engine.backward(loss, torch.tensor(8.0), True)
        num_skipped = float(engine.update(torch.tensor([1.0], dtype=torch.float64))[-1])
        engine.record_skipped(int(num_skipped))
        changed = any(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))
        found.append((num_skipped, engine.deepspeed.skipped_steps, changed))
        factors.pop(0)
    return found


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("spoiled", ["model.bert.embeddings.word_embeddings.weight", "model.cls.predictions.bias"])
@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_a_non_finite_gradient_skips_the_update_on_every_rank(
    tmp_path: Path, name: str, spoiled: str, value: float
) -> None:
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 700)]], k=3)
    assert on_ranks(2, updates, tmp_path / "prepared", name, spoiled, value) == [[(1, 1, False), (0, 1, True)]] * 2
