"""From a run configuration to what it trains on: windows in order, mask schedule, collate step. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, fields

from dnabert_rm.config import ModelConfig, RunConfig
from dnabert_rm.data.batches import BatchPlan
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.folders import StorageSettings
from dnabert_rm.errors import ConfigError
from dnabert_rm.masking.collator import RandomMaskCollator
from dnabert_rm.masking.schedule import MaskSchedule, make_schedule
from dnabert_rm.model.flops import ModelShape
from dnabert_rm.model.init_from import model_fields


def model_shape(model: ModelConfig, vocab_size: int) -> ModelShape:
    """The sizes of a configured model, those of the folder that it begins from if it does."""
    sizes = model_fields(model.init_from) if model.init_from else asdict(model)
    names = [field.name for field in fields(ModelShape) if field.name != "vocab_size"]
    return ModelShape(vocab_size=vocab_size, **{name: sizes[name] for name in names})


def make_dataset(config: RunConfig) -> WindowDataset:
    """The windows of a configuration, in order."""
    data = config.data
    settings = WindowSettings(
        split=data.split,
        window=data.window,
        overlap=data.overlap,
        strand=data.strand,
        lengths=data.lengths,
        num_streams=data.num_streams,
        block_windows=data.block_windows,
        drop_to_multiple_of=config.train.global_batch if data.remainder == "drop" else 1,
    )
    storage = StorageSettings(data.on_bad_shard, data.allow_pipe, data.cache_dir, data.cache_gb)
    return WindowDataset(data.path, data.weights, settings, config.train.seed, storage)


def make_plan(config: RunConfig) -> BatchPlan:
    """The global batch of every step of a new run; `ConfigError` where its warm-up is impossible."""
    train = config.train
    if not train.batch_start:
        return BatchPlan.constant(train.global_batch)
    return BatchPlan.growing(train.batch_start, train.batch_increment, train.global_batch, train.batch_warmup_steps)


def make_mask_schedule(config: RunConfig, k: int | None) -> MaskSchedule:
    """The mask schedule of a configuration; only policy "token" fits a tokenizer without k."""
    masking = config.masking
    if k is None and masking.policy != "token":
        raise ConfigError(f"masking.policy {masking.policy!r} needs k-mers; for BPE shards give --masking token")
    return make_schedule(
        masking.policy,
        k=k or 1,
        total_steps=config.train.steps,
        phase_ends=masking.phase_ends,
        phase_spans=masking.phase_spans,
        centre_rate=masking.centre_rate,
        draw=masking.draw,
        fixed_span=masking.fixed_span,
        token_rate=masking.token_rate,
    )


def make_collator(config: RunConfig, dataset: WindowDataset, plan: BatchPlan) -> RandomMaskCollator:
    """The collate step of a configuration."""
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    return RandomMaskCollator(
        schedule,
        plan.step_of,
        dataset.tokenizer.vocab_size,
        config.train.seed,
        replacement=config.masking.replacement,
    )
