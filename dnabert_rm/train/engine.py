"""DeepSpeed engine of a run, and partitioned construction of large models under ZeRO-3."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnabert_rm.config import ModelConfig, OptimConfig, RunConfig
from dnabert_rm.config.deepspeed_config import offloads_optimizer, zero_stage
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.distributed.collectives import on_every_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.build import architecture_of, build_model, prepare_layers
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.model.initial_weights import set_structured_weights
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.patches.deepspeed_patches import disable_gradient_allreduce, fuse_overflow_check, import_deepspeed
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.train.optimizer import make_optimizer, parameter_groups

PARTITIONED_FROM = 1_000_000_000
"""Number of parameters above which no rank should build the whole model: 4 GB in fp32."""


def is_built_partitioned(model: ModelConfig, vocab_size: int, settings: dict[str, Any]) -> bool:
    """Return whether the model is partitioned over the ranks while it is built. Only ZeRO-3 supports this.

    The setting `model.build` decides. "auto" means partitioned if the ZeRO stage is 3 and the model has more than
    `PARTITIONED_FROM` parameters.
    """
    if model.build == "auto":
        return zero_stage(settings) == 3 and num_parameters(model_shape(model, vocab_size)) > PARTITIONED_FROM
    return model.build == "partitioned"


@contextlib.contextmanager
def partitioned_build(settings: dict[str, Any]) -> Iterator[None]:
    """Context in which the transformers library partitions each module over the ranks as soon as the module is built.

    No rank ever holds the whole model. `settings` is a ZeRO-3 configuration with no "auto" left, and determines the
    precision of the parameters. With the same seed, the weights differ from those of an unpartitioned build, because
    modules are initialized in a different order. The weights do not depend on the number of ranks.
    """
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed = import_deepspeed()
    deepspeed.init_distributed(verbose=False)
    # transformers finds this object through a weak reference, so it has to be kept alive.
    zero3 = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        del zero3


def build_engine(
    config: RunConfig, split: BatchSplit, tokenizer: TokenizerInfo, checkpoint: Path | None, ranks: Ranks
) -> Engine:
    """Return a DeepSpeed engine with a new model, which is built whole or partitioned over the ranks.

    All ranks must call this together. With a `checkpoint`, the architecture comes from it, and its weights still have
    to be loaded.
    """
    model = config.model
    settings = ds_settings(config, split, config.train.precision, ranks.local_world_size)
    architecture = architecture_of(model, tokenizer.vocab_size, checkpoint)
    init_from = "" if checkpoint else model.init_from
    build = functools.partial(build_model, architecture, config.train.seed, model.attention, init_from)
    if is_built_partitioned(model, tokenizer.vocab_size, settings):
        # The ranks exchange weights during this build, so an error on one of them can't be raised on all.
        with partitioned_build(settings):
            network = build()
    else:
        network = on_every_rank(build)
    if model.initial_weights == "structured" and tokenizer.k and not checkpoint and not init_from:
        gathered = functools.partial(import_deepspeed().zero.GatheredParameters, modifier_rank=0)
        set_structured_weights(network, tokenizer.k, config.train.seed, gathered)
    prepare_layers(network, checkpointing=model.activation_checkpointing, compile_layers=model.compile)
    return Engine(MaskedLM(network, tokenizer.k), config, settings, ranks)


class Engine:
    """DeepSpeed engine that trains a `MaskedLM` on all ranks."""

    def __init__(self, module: MaskedLM, config: RunConfig, settings: dict[str, Any], ranks: Ranks) -> None:
        """Wrap `module` in a DeepSpeed engine configured by `settings`, with an AdamW configured by `config.optim`.

        ZeRO-3 partitions the module here, unless the module was built partitioned.
        """
        deepspeed = import_deepspeed()
        if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
            module.to(ranks.device)
        optimizer = _cpu_adam(module, config.optim) if offloads_optimizer(settings) else _adam(module, config.optim)
        self.deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        # In fp32 without ZeRO, DeepSpeed uses our optimizer directly. Otherwise DeepSpeed wraps the optimizer.
        self._is_unwrapped = self.deepspeed.optimizer is optimizer
        fuse_overflow_check(self.deepspeed.optimizer)
        if ranks.world_size == 1 and self._is_unwrapped:
            disable_gradient_allreduce(self.deepspeed)
        self.ranks = ranks
        self.k = module.k
        self._unwrapped_norm: torch.Tensor | None = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Run the module's forward pass."""
        return self.deepspeed(*inputs)

    def backward(self, loss_sum: torch.Tensor, divisor: torch.Tensor, is_last: bool) -> None:
        """Add the gradient of `loss_sum / divisor` to the gradients accumulated in this step.

        DeepSpeed divides the loss by the number of accumulation steps and averages gradients over ranks. To cancel
        both, this method multiplies the loss by the number of accumulation steps and by the number of ranks. The
        gradient of a global batch therefore does not depend on how the global batch is split.

        Args:
            loss_sum: Scalar, the loss summed over the masked tokens of one batch on this rank.
            divisor: Scalar, the sum of the weights of the masked tokens in the global batch.
            is_last: Whether this is the step's last batch on this rank. DeepSpeed's own batch counter is not used,
                because it is wrong after the number of batches per step has changed.
        """
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        undo = self.deepspeed.gradient_accumulation_steps() * self.ranks.world_size
        self.deepspeed.backward(loss_sum * (undo / divisor.to(loss_sum.dtype)))

    def set_accumulation(self, num_batches: int) -> None:
        """Set how many batches this rank runs in the next step. The number changes during a batch-size warm-up."""
        micro_batch = self.deepspeed.train_micro_batch_size_per_gpu()
        self.deepspeed.set_train_batch_size(micro_batch * num_batches * self.ranks.world_size)

    def set_base_share(self, share: float) -> None:
        """Set the fraction of the training loss that is the loss over bases, from 0 to 1."""
        self.deepspeed.module.base_share = share

    def step(self) -> None:
        """Finish a batch. After the last batch of the step, update the weights."""
        # DeepSpeed computes no gradient norm if it does not wrap the optimizer.
        if self._is_unwrapped and self.deepspeed.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._unwrapped_norm = torch.nn.utils.get_total_norm(gradients)
        self.deepspeed.step()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        norm = self.deepspeed.get_global_grad_norm()
        norm = self._unwrapped_norm if norm is None else norm
        return float("nan") if norm is None else float(norm)

    @property
    def module(self) -> nn.Module:
        """The wrapped module. Under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module

    @property
    def loss_scale(self) -> float | None:
        """Loss scale for fp16, or None for other precisions."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(scaler.cur_scale) if self.deepspeed.fp16_enabled() and scaler else None

    @property
    def skipped_steps(self) -> int:
        """Number of updates that were skipped because gradients overflowed."""
        return int(self.deepspeed.skipped_steps)


def _adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    betas = (optim.beta1, optim.beta2)
    return make_optimizer(module, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)


def _cpu_adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return DeepSpeed's vectorized AdamW for optimizer states in CPU memory. DeepSpeed compiles it on first use."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    groups = parameter_groups(module, optim.weight_decay)
    return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, adamw_mode=True)
