"""`dnabert-rm plan`'s memory against what a training step allocates, on CPU ranks, through our own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from allocations import step_peak
from support import on_ranks, random_bases, write_prepared

from dnabert_rm.config import load_preset, resolve
from dnabert_rm.config.deepspeed_config import ZeroSettings, load_ds_config
from dnabert_rm.planning.planner import estimate, make_job

SMALL_BUCKET = {"reduce_bucket_size": 1_000_000}
"""DeepSpeed's own buckets, gigabytes large, would hide what the model takes."""

CASES = [
    # preset, architecture, ranks, ds_config, precision, windows a micro-batch, window, accumulation, other settings,
    # tolerance: loose where the logits weigh much, as a few windows have other masks than the mean
    ("small", "bert", 1, "zero0", "fp32", 2, 512, 1, {}, 0.02),
    ("mini", "modernbert", 1, "zero2", "fp32", 2, 128, 2, {"attention": "eager"}, 0.08),
    ("mini", "modernbert", 1, "zero0", "fp32", 1, 512, 1, {"activation_checkpointing": True, "dropout": 0.1}, 0.08),
    ("small", "bert", 2, "zero1", "fp32", 1, 64, 1, {}, 0.08),
    ("small", "bert", 2, "zero3", "fp32", 2, 128, 1, {}, 0.02),
    ("mini", "bert", 2, "zero3", "fp32", 1, 64, 1, {}, 0.02),
    ("tiny", "bert", 1, "zero1", "bf16", 2, 512, 1, {}, 0.08),
    ("tiny", "modernbert", 2, "zero3", "bf16", 2, 512, 1, {"dropout": 0.1}, 0.08),
    ("base", "bert", 1, "zero0", "fp32", 1, 512, 1, {}, 0.02),
    ("base", "bert", 1, "zero3", "fp32", 1, 64, 1, {}, 0.02),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 9000) for _ in range(4)] for _ in range(2)])
    return folder


def compare(prepared: Path, case: tuple, zero: dict[str, Any]) -> tuple[float, float]:
    """Measured bytes, the mean over the ranks, and the plan's."""
    preset, architecture, ranks, ds_config, precision, windows, window, accumulation, model, _ = case
    sections = {
        "model": {**load_preset(preset, architecture)["model"], "architecture": architecture, **model},
        "data": {"path": [str(prepared)], "window": window},
        "train": {"output": "unused", "steps": 100, "global_batch": windows * ranks * accumulation,
                  "micro_batch": windows, "precision": precision, "ds_config": ds_config},
    }  # fmt: skip
    job = make_job(resolve(sections), 4101, ranks, on_gpu=False)
    settings = load_ds_config(ds_config)[1]
    settings["zero_optimization"] |= zero
    planned = estimate(job, ZeroSettings.from_ds(settings))
    measured = [peak for peak, _ in on_ranks(ranks, step_peak, sections, zero)]
    print(f"{case}: measured {[round(peak / 1e6, 1) for peak in measured]} MB, planned {planned.total / 1e6:.1f} MB "
          f"({planned.total / np.mean(measured) - 1:+.1%}), when {planned.moment}")  # fmt: skip
    return float(np.mean(measured)), planned.total


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:5])))
def test_planned_memory_is_what_a_step_allocates(prepared: Path, case: tuple) -> None:
    zero = SMALL_BUCKET if case[3] != "zero0" else {}
    measured, planned = compare(prepared, case, zero)
    assert planned == pytest.approx(measured, rel=case[-1])


def test_deepspeeds_own_buckets_are_counted(prepared: Path) -> None:
    measured, planned = compare(prepared, ("tiny", "bert", 1, "zero1", "fp32", 1, 512, 1, {}, 0.02), {})
    assert measured > 4e9
    assert planned == pytest.approx(measured, rel=0.01)
