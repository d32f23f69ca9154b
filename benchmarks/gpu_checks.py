"""Correctness checks on a GPU before anything is timed, and the device's peak rate. Each runs in a worker."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from setting import Setting

STEPS = 20
STOP = 10
"""Step at which a run is stopped, to be resumed."""
BASES = 1000
"""Size of the training genome: few windows, so that 20 steps reduce the loss."""
LARGEST_ERROR = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative error of the masked tokens' logits between two attention kernels."""


def losses_of_run(setting: Setting, run: str, precision: str, stop_after: int, _report_step: Any) -> list[float]:
    """Run `pretrain` to step 20, or to `stop_after`, in the folder `run`, and return all losses so far.

    Uses deterministic kernels if torch has them.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.train.trainer import pretrain

    config = resolve(
        load_preset("tiny"),
        {
            "data": {"path": [setting.data], "window": setting.tokens, "num_workers": 0},
            "train": {
                "output": run,
                "steps": STEPS,
                "stop_after": stop_after,
                "global_batch": setting.windows,
                "precision": precision,
                "ds_config": "zero3",
                "log_every": 1,
                "threads_per_rank": setting.threads,
            },
        },
    )
    pretrain(config)
    return [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def attention_error(setting: Setting, precision: str, _report_step: Any) -> float:
    """Return ‖sdpa − eager‖ / ‖eager‖ over the logits of one masked batch."""
    from contenders import RESIDENT, masked_batches, stock_model

    from dnabert_rm.model.mlm import MaskedLM

    logits = []
    for attention in ("eager", "sdpa"):
        fields = {**setting.fields, "model": {"attention": attention, "dropout": 0.0}}
        config = Setting(setting.data, "tiny", precision, setting.device, 4, setting.tokens, fields=fields).config(
            "unused"
        )
        batch = next(masked_batches(config))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        module = MaskedLM(stock_model(config, 4101)).to(setting.device, dtype).eval()
        with torch.no_grad():
            logits.append(module(*(batch[name].to(setting.device) for name in RESIDENT[:2])).double())
    return float((logits[1] - logits[0]).norm() / logits[0].norm())


def matrix_ceiling(setting: Setting, _report_step: Any) -> dict[str, Any]:
    """Return the device's name and its best rate (FLOP/s) over several sizes of square bf16 matrix products."""
    on_gpu = setting.device == "cuda"
    rates = {}
    for size in (4096, 8192, 16384) if on_gpu else (128, 256):
        a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
        rates[size] = 2 * size**3 / _median_seconds(lambda a=a, b=b: a @ b, on_gpu)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else 0
    return {"device": name, "memory_bytes": memory, "flops_by_size": rates, "flops": max(rates.values())}


def _median_seconds(product: Any, on_gpu: bool) -> float:
    times = []
    for number in range(15):
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            product()
            end.record()
            torch.cuda.synchronize()
            seconds = start.elapsed_time(end) / 1000
        else:
            begin = time.perf_counter()
            product()
            seconds = time.perf_counter() - begin
        if number >= 5:
            times.append(seconds)
    return statistics.median(times)


def check(call: Any, setting: Setting) -> list[dict[str, Any]]:
    """Run all checks; return one record per check with its name, whether it holds, and its figures.

    `call(function, *arguments)` runs a function in a worker.
    """
    checks: list[dict[str, Any]] = []

    def note(what: str, holds: bool, **figures: Any) -> None:
        checks.append({"check": what, "holds": holds, **figures})
        print(f"{'ok' if holds else 'FAILED':<7}{what}: {figures}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        whole = _losses(call, setting, f"{folder}/whole", "bf16")
        first = statistics.fmean(whole[:4])
        last = statistics.fmean(whole[-4:])
        note("ZeRO-3 in bf16: the loss falls", last < first - 0.3, first_steps=first, last_steps=last)
        _losses(call, setting, f"{folder}/stopped", "bf16", STOP)
        resumed = _losses(call, setting, f"{folder}/stopped", "bf16")
        difference = max(abs(a - b) for a, b in zip(whole, resumed, strict=True))
        note("a run stopped at step 10 and resumed has the same losses", difference == 0, largest_difference=difference)
        exact = _losses(call, setting, f"{folder}/fp32", "fp32")
        difference = max(abs(a - b) for a, b in zip(whole, exact, strict=True))
        note("bf16 and fp32 losses are near", difference < 0.1, largest_difference=difference)
    for precision, largest in LARGEST_ERROR.items():
        error = call("gpu_checks:attention_error", setting, precision)
        note(f"sdpa and eager attention agree in {precision}", error < largest, relative_error=error)
    return checks


def _losses(call: Any, setting: Setting, run: str, precision: str, stop_after: int = 0) -> list[float]:
    losses: list[float] = call("gpu_checks:losses_of_run", setting, run, precision, stop_after)
    return losses
