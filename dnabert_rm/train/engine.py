"""The DeepSpeed engine: its configuration filled in from ours, and the few calls the loop makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnabert_rm.config import RunConfig
from dnabert_rm.data.batches import check_split
from dnabert_rm.errors import ConfigError
from dnabert_rm.train.distributed import Ranks, gpu_in_use
from dnabert_rm.train.optim import make_optimizer
from dnabert_rm.train.preflight import load_ds_config

AUTO = "auto"


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is cut: `micro_batch` windows a forward pass, `accumulation` passes, on `world_size` ranks."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int


def split_batch(global_batch: int, micro_batch: int, world_size: int) -> BatchSplit:
    """The split of a global batch over the ranks; `micro_batch` 0 means no accumulation. `ConfigError` if uneven."""
    micro_batch = micro_batch or check_split(global_batch, world_size, 1)
    if global_batch % (micro_batch * world_size):
        raise ConfigError(
            f"train.global_batch: {global_batch} is not a multiple of train.micro_batch x ranks "
            f"({micro_batch} x {world_size}); change one of them"
        )
    return BatchSplit(global_batch, micro_batch, global_batch // (micro_batch * world_size), world_size)


def resolve_precision(precision: str) -> str:
    """ "auto" → "bf16" on a GPU that has it, else "fp32"; others as they are."""
    if precision != "auto":
        return precision
    return "bf16" if gpu_in_use() and torch.cuda.is_bf16_supported() else "fp32"


def ds_settings(config: RunConfig, split: BatchSplit) -> dict[str, Any]:
    """DeepSpeed's configuration with "auto" filled in; a value that contradicts ours is a `ConfigError`."""
    path, settings = load_ds_config(config.train.ds_config)
    precision = resolve_precision(config.train.precision)
    ours = {
        ("train_batch_size",): (split.global_batch, "train.global_batch"),
        ("train_micro_batch_size_per_gpu",): (split.micro_batch, "train.micro_batch"),
        ("gradient_accumulation_steps",): (split.accumulation, "train.global_batch / (micro_batch x ranks)"),
        ("gradient_clipping",): (config.optim.clip, "optim.clip"),
        ("bf16", "enabled"): (precision == "bf16", "train.precision"),
        ("fp16", "enabled"): (precision == "fp16", "train.precision"),
        # DeepSpeed's own step messages; ours go to metrics.jsonl and TensorBoard.
        ("steps_per_print",): (1 << 40, "nothing: set it to auto"),
    }
    for keys, (value, name) in ours.items():
        _fill(settings, keys, value, name, path)
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{path}: {key}: is set by [optim] of the run configuration; remove it")
    return settings


def _fill(settings: dict[str, Any], keys: tuple[str, ...], value: Any, ours: str, path: Path) -> None:
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
    there = settings.get(keys[-1], AUTO)
    if there != AUTO and there != value:
        raise ConfigError(f'{path}: {".".join(keys)} is {there}, but {ours} makes it {value}; set it to "auto"')
    settings[keys[-1]] = value


class Engine:
    """One training engine over all ranks; the module is a `MaskedLM`."""

    def __init__(self, module: nn.Module, config: RunConfig, settings: dict[str, Any], ranks: Ranks) -> None:
        """Partitions `module` as `settings` say, with AdamW as `config.optim` says."""
        import deepspeed

        module.to(ranks.device)
        optim = config.optim
        optimizer = make_optimizer(
            module, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
        )
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.ranks = ranks

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Forward pass of the module."""
        return self.deepspeed(*inputs)

    def backward(self, loss_sum: torch.Tensor, num_targets: torch.Tensor) -> None:
        """Add the gradient of `loss_sum / num_targets`, both scalars; `num_targets` is that of the global batch.

        DeepSpeed divides by the accumulation steps and averages over ranks; both are undone here, so that a
        global batch gives one gradient however it is split.
        """
        undo = self.deepspeed.gradient_accumulation_steps() * self.ranks.world_size
        self.deepspeed.backward(loss_sum * (undo / num_targets.to(loss_sum.dtype)))

    def step(self) -> None:
        """End of a micro-batch; after the last one of a global batch, the update."""
        self.deepspeed.step()

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the coming update."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @property
    def module(self) -> nn.Module:
        """The (partitioned) module."""
        return self.deepspeed.module
