"""Build a run's model and engine. Large models are partitioned over the ranks while they are built (ZeRO-3)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnabert_rm.config import ModelConfig, OptimConfig, RunConfig
from dnabert_rm.config.deepspeed_config import offloads_optimizer, updates_on_device, zero_stage
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.distributed.collectives import on_every_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.build import architecture_of, build_model, encoder_layers, prepare_layers
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.model.initial_weights import set_structured_weights
from dnabert_rm.model.kernels import check_float8, chosen_attention_kernel, convert_to_float8, is_compiled
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.patches.deepspeed_patches import import_deepspeed
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.train.device_engine import DeviceEngine
from dnabert_rm.train.engine import Engine
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
    on_every_rank(
        lambda: chosen_attention_kernel(model, architecture, config.data.window, config.train.precision, ranks.device)
    )
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
    compiled = is_compiled(model, architecture.model_type, zero_stage(settings), ranks.device)
    if model.float8:
        check = functools.partial(
            check_float8,
            architecture,
            num_tokens=split.micro_batch * config.data.window,
            precision=config.train.precision,
            compiled=compiled,
            zero_stage=zero_stage(settings),
            device=ranks.device,
        )
        on_every_rank(check)
        # The last layer's products have as many rows as there are masked tokens, which FP8 kernels refuse.
        convert_to_float8(encoder_layers(network)[:-1])
    prepare_layers(network, checkpointing=model.activation_checkpointing, compiled=compiled)
    return make_engine(MaskedLM(network, tokenizer.k), config, settings, ranks)


def make_engine(module: MaskedLM, config: RunConfig, settings: dict[str, Any], ranks: Ranks) -> Engine:
    """Return an engine for `module` with an AdamW configured by `config.optim`. All ranks must call this together.

    `settings` comes from `ds_settings`. It decides which engine the run gets.
    """
    module.train()
    if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        module.to(ranks.device)
    if offloads_optimizer(settings):
        return Engine(module, _cpu_adam(module, config.optim), settings, ranks)
    optimizer = _adam(module, config.optim)
    if updates_on_device(settings, config.train.precision):
        return DeviceEngine(module, optimizer, settings, ranks, config.optim.clip)
    return Engine(module, optimizer, settings, ranks)


def _adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    betas = (optim.beta1, optim.beta2)
    return make_optimizer(module, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)


def _cpu_adam(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return DeepSpeed's vectorized AdamW for optimizer states in CPU memory. DeepSpeed compiles it on first use."""
    import_deepspeed()  # with the lock around the compilation
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    groups = parameter_groups(module, optim.weight_decay)
    return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, adamw_mode=True)
