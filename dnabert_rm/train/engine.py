"""The DeepSpeed engine and the few calls that the loop makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dnabert_rm.config import ModelConfig, OptimConfig, RunConfig
from dnabert_rm.config.deepspeed_config import offloads_optimizer, zero_stage
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.patches.deepspeed_patches import fuse_overflow_check, import_deepspeed
from dnabert_rm.train.optimizer import make_optimizer, parameter_groups


@contextlib.contextmanager
def partitioned_build(settings: dict[str, Any]) -> Iterator[None]:
    """Inside, transformers partitions each module over the ranks as soon as it is made: no rank ever holds the whole.

    `settings` is a ZeRO-3 configuration without "auto"; parameters get its precision. Weights are drawn in another
    order than in a whole build, so they differ from it for the same seed; the number of ranks does not matter.
    """
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed = import_deepspeed()
    deepspeed.init_distributed(verbose=False)
    # transformers looks for an object of this class and holds no reference of its own.
    zero3 = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        del zero3


class Engine:
    """One training engine over all ranks; the module is a `MaskedLM`."""

    def __init__(self, module: MaskedLM, config: RunConfig, settings: dict[str, Any], ranks: Ranks) -> None:
        """Partitions `module`, unless it was built so, as `settings` say, with AdamW as `config.optim` says."""
        deepspeed = import_deepspeed()
        if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
            module.to(ranks.device)
        optimizer = _cpu_adam(module, config.optim) if offloads_optimizer(settings) else _adam(module, config.optim)
        self.deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        # In fp32 without ZeRO, DeepSpeed steps our optimizer as it is; else it wraps it in one of its own.
        self._is_plain = self.deepspeed.optimizer is optimizer
        fuse_overflow_check(self.deepspeed.optimizer)
        if ranks.world_size == 1 and self._is_plain:
            # DeepSpeed would copy all gradients into a buffer and back to add up one rank's.
            self.deepspeed.enable_backward_allreduce = False
        self.ranks, self.k = ranks, module.k
        self._plain_norm: torch.Tensor | None = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Forward pass of the module."""
        return self.deepspeed(*inputs)

    def backward(self, loss_sum: torch.Tensor, num_targets: torch.Tensor, is_last: bool) -> None:
        """Add the gradient of `loss_sum / num_targets`, both scalars; `num_targets` is that of the global batch.

        `is_last` says that this is the step's last micro-batch. DeepSpeed would count for itself, from the beginning of
        the run, which goes wrong where the number of micro-batches changes.

        DeepSpeed divides by the accumulation steps and averages over ranks; both are undone here, so that a
        global batch gives one gradient however it is split.
        """
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        undo = self.deepspeed.gradient_accumulation_steps() * self.ranks.world_size
        self.deepspeed.backward(loss_sum * (undo / num_targets.to(loss_sum.dtype)))

    def set_accumulation(self, num_micro_batches: int) -> None:
        """How many micro-batches make the coming step; a batch-size warm-up changes it."""
        micro_batch = self.deepspeed.train_micro_batch_size_per_gpu()
        self.deepspeed.set_train_batch_size(micro_batch * num_micro_batches * self.ranks.world_size)

    def step(self) -> None:
        """End of a micro-batch; after the last one of a global batch, the update."""
        # DeepSpeed keeps no gradient norm where it wraps no optimizer.
        if self._is_plain and self.deepspeed.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._plain_norm = torch.nn.utils.get_total_norm(gradients)
        self.deepspeed.step()

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the coming update."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        norm = self.deepspeed.get_global_grad_norm()
        norm = self._plain_norm if norm is None else norm
        return float("nan") if norm is None else float(norm)

    @property
    def module(self) -> nn.Module:
        """The (partitioned) module."""
        return self.deepspeed.module

    @property
    def loss_scale(self) -> float | None:
        """fp16's loss scale; None in other precisions."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(scaler.cur_scale) if self.deepspeed.fp16_enabled() and scaler else None

    @property
    def skipped_steps(self) -> int:
        """Updates left out because fp16's gradients overflowed."""
        return int(self.deepspeed.skipped_steps)


def _adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    betas = (optim.beta1, optim.beta2)
    return make_optimizer(module, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)


def _cpu_adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """DeepSpeed's vectorised AdamW for states in CPU memory; it is compiled at the first use."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    groups = parameter_groups(module, optim.weight_decay)
    return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, adamw_mode=True)


PARTITIONED_FROM = 1_000_000_000
"""Parameters above which a rank should not hold the whole model while it is built: 4 GB in fp32."""


def is_built_partitioned(model: ModelConfig, vocab_size: int, settings: dict[str, Any]) -> bool:
    """Whether the model is partitioned over the ranks while it is built: as `model.build` says, under ZeRO-3 alone."""
    if model.build == "auto":
        return zero_stage(settings) == 3 and num_parameters(model_shape(model, vocab_size)) > PARTITIONED_FROM
    return model.build == "partitioned"
