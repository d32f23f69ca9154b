"""From a run configuration to what it trains on: windows in order, mask schedule, collate step. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, fields

import numpy as np

from dnabert_rm.config import ModelConfig, RunConfig
from dnabert_rm.data.batches import BatchPlan
from dnabert_rm.data.dataset import NUM_SPECIAL_PER_WINDOW, WindowDataset, WindowSettings
from dnabert_rm.data.folders import StorageSettings, prepared_folder
from dnabert_rm.data.lengths import tokens_of_steps
from dnabert_rm.errors import ConfigError
from dnabert_rm.masking.collator import RandomMaskCollator
from dnabert_rm.masking.schedule import SPAN_STEP, MaskSchedule, make_schedule
from dnabert_rm.model.flops import ModelShape
from dnabert_rm.model.init_from import model_fields

VALIDATION_SEED = 0
"""Of held-out windows and their masks: runs with different seeds are asked the same."""


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


def make_validation_dataset(config: RunConfig) -> WindowDataset | None:
    """Held-out windows, full and of the forward strand, in an order that no seed changes; None where no window fits."""
    data, validation = config.data, config.validation
    storage = StorageSettings(data.on_bad_shard, data.allow_pipe, data.cache_dir, data.cache_gb)
    if not validation.every:
        return None
    having = []
    for path in data.path:
        manifest = prepared_folder(path, storage).manifest()
        stored = (data.window - NUM_SPECIAL_PER_WINDOW - 1) * (1 if data.overlap else manifest.tokenizer.k or 1) + 1
        if any(s.split == validation.split and max(s.segments, default=0) >= stored for s in manifest.shards):
            having.append(path)
    if not having:
        return None
    settings = WindowSettings(split=validation.split, window=data.window, overlap=data.overlap)
    return WindowDataset(having, [], settings, VALIDATION_SEED, storage)


def make_validation_collators(config: RunConfig, dataset: WindowDataset) -> dict[str, RandomMaskCollator]:
    """The collate steps of the validation, by the names of their curves: "span_6" …, or "token".

    Spans and rates are the same for all runs on the data, whatever they train with.
    """
    k, vocab_size = dataset.tokenizer.k, dataset.tokenizer.vocab_size
    spans = config.validation.spans
    if k is None or (not config.data.overlap and not spans):
        schedules = {"token": make_schedule("token", k=k or 1, total_steps=1)}
    else:
        spans = spans or tuple(range(k, k + 4 * SPAN_STEP + 1, SPAN_STEP))
        schedules = {f"span_{span}": make_schedule("fixed", k=k, total_steps=1, fixed_span=span) for span in spans}
    return {
        name: RandomMaskCollator(schedule, np.zeros_like, vocab_size, VALIDATION_SEED)
        for name, schedule in schedules.items()
    }


def make_plan(config: RunConfig) -> BatchPlan:
    """The global batch of every step of a new run; `ConfigError` where its warm-up is impossible."""
    train = config.train
    if not train.batch_start:
        return BatchPlan.constant(train.global_batch)
    return BatchPlan.growing(train.batch_start, train.batch_increment, train.global_batch, train.batch_warmup_steps)


def consumed_tokens(dataset: WindowDataset, plan: BatchPlan, step: int) -> int:
    """Tokens in the windows of the steps before `step`, [CLS] and [SEP] included."""
    if dataset.settings.lengths == "full":
        return plan.first_sample(step) * dataset.settings.window
    steps = np.arange(step + 1)
    batches = np.diff([plan.first_sample(int(before)) for before in steps])
    tokens = tokens_of_steps(dataset.seed, steps[:-1], dataset.num_tokens) + NUM_SPECIAL_PER_WINDOW
    return int((batches * tokens).sum())


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
