"""Check a run's configuration, data, checkpoint and batch sizes before any rank starts. Torch-free."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from pathlib import Path

from dnabert_rm.checkpoint.compatibility import (
    CheckpointMetadata,
    check_compatible,
    describe_changes,
    read_metadata,
    without_init_from,
)
from dnabert_rm.checkpoint.run_folder import STATE_NAME, candidates, complete_steps, step_folder
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import load_ds_config, zero_stage
from dnabert_rm.config.run_config import ignored_settings
from dnabert_rm.data.batching import BatchPlan, BatchSplit, describe_batch, make_batch_plan, split_batch
from dnabert_rm.data.dataset import WindowDataset, make_dataset, make_validation_dataset
from dnabert_rm.masking.schedule import MaskSchedule, make_mask_schedule
from dnabert_rm.model.pretrained import check_vocabulary
from dnabert_rm.planning.disk_space import check_disk
from dnabert_rm.planning.planner import Job, estimate, gib, job_of_run, zero_settings
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.train.trackers import check_trackers
from dnabert_rm.utils.errors import CheckpointError, ConfigError


def check_run(config: RunConfig, num_ranks: int = 1) -> list[str]:
    """Check a run without starting its ranks, and return lines of text that describe the run.

    Raises `UserError` for an error in the configuration, data or checkpoint. Writes nothing to the run folder, and
    reads no shard.
    """
    check_trackers(config.train.trackers)
    dataset = make_dataset(config)
    vocab_size = dataset.tokenizer.vocab_size
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    # Precision "auto" is resolved only on the run's device.
    ds_settings(config, precision=None if config.train.precision == "auto" else config.train.precision)
    make_validation_dataset(config)
    candidates(config.train.resume, Path(config.train.output))
    newest = newest_checkpoint(config)
    changes = check_compatible(newest, config, dataset.tokenizer, dataset.fingerprint) if newest else []
    plan, first_step = remaining_plan(config, newest.state if newest else None)
    split = split_batch(plan, config.train.micro_batch, num_ranks, first_step)
    _check_batch_size(split, dataset)
    if dataset.tokenizer.k is None and config.model.loss != "token":
        raise ConfigError(f"model.loss {config.model.loss}: needs k-mers; pass --loss token for BPE shards")
    if newest:  # a resumed run has its checkpoint's sizes and weights
        config = without_init_from(config)
    if config.model.init_from:
        check_vocabulary(config.model.init_from, dataset.tokenizer.k, vocab_size, dataset.tokenizer.model_sha256)
    if config.model.attention == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        raise ConfigError(
            "model.attention: flash_attention_2 needs the package flash-attn; install flash-attn or choose sdpa"
        )
    # The device is unknown here. Assume a GPU, except at ZeRO stage 0, which suits a CPU.
    on_gpu = zero_stage(load_ds_config(config.train.ds_config)[1]) != 0
    job = job_of_run(config, vocab_size, plan, split, schedule, on_gpu=on_gpu, first_step=first_step)
    return [
        _data_line(config, dataset, plan),
        _phases_line(schedule),
        _batches_line(config, split),
        _memory_line(config, job),
        check_disk(config, vocab_size),
        f"fingerprint: {dataset.fingerprint}",
        *([describe_changes(first_step, changes)] if changes else []),
        *(f"warning: {text}" for text in ignored_settings(config)),
    ]


def newest_checkpoint(config: RunConfig) -> CheckpointMetadata | None:
    """Return the metadata of the newest checkpoint that the run could resume, or None.

    Only metadata is read here. The run itself checks all files of the checkpoint for damage.
    """
    train = config.train
    if train.resume == "never":
        return None
    source = Path(train.output if train.resume == "auto" else train.resume)
    folders = [source] if (source / STATE_NAME).is_file() else []
    folders += [step_folder(source, step) for step in reversed(complete_steps(source))]
    for folder in folders:
        with contextlib.suppress(CheckpointError):
            return read_metadata(folder)
    return None


def remaining_plan(config: RunConfig, state: TrainState | None) -> tuple[BatchPlan, int]:
    """Return the global batch size of each step (`BatchPlan`), and the first step to run.

    `state` is the training state to resume from, or None for a new run.
    """
    if state is None:
        return make_batch_plan(config), 0
    return state.plan.changed(state.step, config.train.global_batch), state.step


def _check_batch_size(split: BatchSplit, dataset: WindowDataset) -> None:
    """Raise `ConfigError` if a global batch is larger than an epoch."""
    if split.global_batch > dataset.num_windows:
        raise ConfigError(
            f"train.global_batch: {split.global_batch} is more than the {dataset.num_windows} windows of an epoch, so "
            "a batch would contain some windows twice; lower --global-batch or --window, or build more data"
        )


def _data_line(config: RunConfig, dataset: WindowDataset, plan: BatchPlan) -> str:
    epochs = f"{plan.first_sample(config.train.steps) / dataset.epoch_samples:.2f} epochs"
    if len(dataset.samplers) > 1:
        epochs += " of the data set that is read most often"
    weight = config.data.repeat_weight
    return f"data: {dataset.num_windows} windows of {config.data.window} tokens per epoch, {epochs}" + (
        f"; soft-masked bases have weight {weight:g}" if weight < 1 else ""
    )


def _phases_line(schedule: MaskSchedule) -> str:
    phases = zip(schedule.phase_ends, schedule.spans, strict=True)
    return "phases end at steps " + ", ".join(f"{end} (spans up to {max(spans)})" for end, spans in phases)


def _batches_line(config: RunConfig, split: BatchSplit) -> str:
    """Return a line of text on how the ranks share a global batch.

    An epoch's windows are divided into `data.num_streams` streams. The line says how many streams each rank reads,
    because a rank that reads more streams opens more shards.
    """
    num_ranks = split.world_size
    num_streams = config.data.num_streams
    batch = describe_batch(num_ranks, split.micro_batch, split.accumulation(split.global_batch))
    streams = num_streams // math.gcd(num_streams, num_ranks)
    return f"batches: {batch}; each rank reads {streams} of {num_streams} streams"


def _memory_line(config: RunConfig, job: Job) -> str:
    name = config.train.ds_config
    return (
        f"memory: {name} takes an estimated {gib(estimate(job, zero_settings(job, name)).total)} per rank in "
        f"{job.work.precision} (`dnabert-rm plan` has advice)"
    )
