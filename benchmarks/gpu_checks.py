"""Correctness checks on a GPU. Each function runs in a worker, and returns records with a name, "holds" and figures."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from contenders import RESIDENT, masked_batches, opened_trainer, stock_model
from setting import Setting
from torch.utils._python_dispatch import TorchDispatchMode

from dnabert_rm.config import load_preset, resolve
from dnabert_rm.data.dataset import make_dataset
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.distributed.watchdog import Watchdog
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.train.step import QueuedStep, StepStart, queue_step
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.train.trainer import Trainer

Check = dict[str, Any]
STEPS = 20
STOP = 10
"""Step at which a run is stopped, to be resumed."""
SHORT_STEPS = 8
"""Steps of each of two runs that are compared."""
LARGEST_ERROR = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative error of the masked tokens' logits between two attention kernels."""


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches. Views are left out, because they launch no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view:
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def steady_step(ranks: Ranks, setting: Setting, _reporter: Any) -> list[Check]:
    """Queue a step while torch raises an error for each operation that waits for the GPU."""
    operations = Operations()
    reason = ""
    with tempfile.TemporaryDirectory() as folder, opened_trainer(ranks, setting, folder) as trainer:
        loader = iter(trainer.loader)
        for step in range(3):
            _queue(trainer, loader, step).result()
        start, batches = StepStart(ranks.device), _next_batches(trainer, loader, 3)
        try:
            with _no_waits(setting.device), operations:
                queued = queue_step(
                    trainer.engine, batches, 3, trainer.config.train.seed, lambda: (False, False), start
                )
            queued.result()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
    reads = operations.counts["aten::_local_scalar_dense"]
    figures = {"operations": sum(operations.counts.values()), "scalar_reads": reads, "reason": reason}
    return [{"check": "a steady step reads nothing back", "holds": not (reason or reads), **figures}]


@contextlib.contextmanager
def _no_waits(device: str) -> Iterator[None]:
    """Make operations that wait for the GPU raise an error in the block."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _next_batches(trainer: Trainer, loader: Iterator[Any], step: int) -> list[Any]:
    return [next(loader) for _ in range(trainer.split.accumulation(trainer.state.plan.batch_of_step(step)))]


def _queue(trainer: Trainer, loader: Iterator[Any], step: int) -> QueuedStep:
    """Queue a step as `Trainer.train` does."""
    start, batches = StepStart(trainer.ranks.device), _next_batches(trainer, loader, step)
    trainer.engine.set_learning_rate(trainer.learning_rate(step))
    trainer.engine.set_accumulation(len(batches))
    trainer.engine.set_base_share(trainer.base_share(step))
    return queue_step(trainer.engine, batches, step, trainer.config.train.seed, lambda: (False, False), start)


def two_runs(ranks: Ranks, setting: Setting, _reporter: Any) -> list[Check]:
    """Compare the losses and the final weights of two short runs bit for bit."""
    first, second = (_short_run(ranks, setting) for _ in range(2))
    differences = [abs(a - b) for a, b in zip(first[0], second[0], strict=True)]
    strict = " with train.deterministic" if setting.fields["train"].get("deterministic") else ""
    same_weights = first[1] == second[1]
    figures = {"largest_loss_difference": max(differences), "same_weights": same_weights, "tokens": setting.tokens}
    return [{"check": f"two runs{strict} are the same bit for bit", "holds": same_weights, **figures}]


def _short_run(ranks: Ranks, setting: Setting) -> tuple[list[float], str]:
    """Return the losses of a short run, and a hash of its last weights."""
    with tempfile.TemporaryDirectory() as folder, opened_trainer(ranks, setting, folder) as trainer:
        loader = iter(trainer.loader)
        losses = [_queue(trainer, loader, step).result().loss for step in range(SHORT_STEPS)]
        weights = hashlib.sha256()
        for parameter in trainer.engine.module.parameters():
            weights.update(parameter.detach().float().cpu().numpy().tobytes())
    return losses, weights.hexdigest()


def check_training(ranks: Ranks, setting: Setting, _reporter: Any) -> list[Check]:
    """Check that ZeRO-3 learns and resumes exactly, and that precisions and attention kernels agree."""
    checks: list[Check] = []

    def note(what: str, holds: bool, **figures: Any) -> None:
        checks.append({"check": what, "holds": holds, **figures})

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = _losses_of_run(ranks, setting, f"{folder}/whole", "bf16")
        first = statistics.fmean(whole[:4])
        last = statistics.fmean(whole[-4:])
        note("ZeRO-3 in bf16: the loss falls", last < first - 0.3, first_steps=first, last_steps=last)
        _losses_of_run(ranks, setting, f"{folder}/stopped", "bf16", STOP)
        resumed = _losses_of_run(ranks, setting, f"{folder}/stopped", "bf16")
        difference = max(abs(a - b) for a, b in zip(whole, resumed, strict=True))
        note("a run stopped at step 10 and resumed has the same losses", difference == 0, largest_difference=difference)
        exact = _losses_of_run(ranks, setting, f"{folder}/fp32", "fp32")
        difference = max(abs(a - b) for a, b in zip(whole, exact, strict=True))
        note("bf16 and fp32 losses are near", difference < 0.1, largest_difference=difference)
    torch.use_deterministic_algorithms(False)
    for precision, largest in LARGEST_ERROR.items():
        error = attention_error(setting, precision)
        note(f"sdpa and eager attention agree in {precision}", error < largest, relative_error=error)
    return checks


def _losses_of_run(ranks: Ranks, setting: Setting, run: str, precision: str, stop_after: int = 0) -> list[float]:
    """Pretrain to step 20, or to `stop_after`, in the folder `run`, and return all losses so far."""
    config = resolve(
        load_preset("tiny"),
        {
            "model": {"loss": "token"},
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
    with contextlib.closing(Watchdog(Path(run), 0, 0.0)) as watchdog:
        trainer = Trainer(config, make_dataset(config), ranks, StopRequests(), watchdog)
        trainer.run()
        trainer.engine.deepspeed.destroy()
    return [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def attention_error(setting: Setting, precision: str) -> float:
    """Return ‖sdpa − eager‖ / ‖eager‖ over the logits of one masked batch."""
    logits = []
    for attention in ("eager", "sdpa"):
        fields = {"model": {"attention": attention, "dropout": 0.0}}
        config = Setting(setting.data, "tiny", precision, setting.device, 4, setting.tokens, fields=fields).config(
            "unused"
        )
        batch = next(masked_batches(config))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        module = MaskedLM(stock_model(config, 4101)).to(setting.device, dtype).eval()
        with torch.no_grad():
            logits.append(module(*(batch[name].to(setting.device) for name in RESIDENT[:2])).double())
    return float((logits[1] - logits[0]).norm() / logits[0].norm())
