"""What can be checked before any rank starts: configuration, data, batch arithmetic. Torch-free."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from pathlib import Path

from dnabert_rm.checkpoint.compatibility import check_compatible
from dnabert_rm.checkpoint.run_folder import STATE_NAME, candidates, complete_steps, read_state, step_folder
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import ZeroSettings, load_ds_config
from dnabert_rm.data.batching import BatchPlan, make_plan, split_batch
from dnabert_rm.data.dataset import WindowDataset, make_dataset, make_validation_dataset
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.pretrained import check_vocabulary
from dnabert_rm.planning.activations import FP32_BYTES
from dnabert_rm.planning.disk_space import check_disk
from dnabert_rm.planning.planner import estimate, make_job
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.utils.errors import CheckpointError, ConfigError


def check_run(config: RunConfig, num_ranks: int = 1) -> list[str]:
    """Check what needs no other rank; returns lines that describe the run, or raises `UserError`.

    Nothing is written, and no shard is read.
    """
    dataset = make_dataset(config)
    schedule = make_mask_schedule(config, dataset.tokenizer.k)
    # "auto" is known only where the run starts, on its own device.
    ds_settings(config, precision=None if config.train.precision == "auto" else config.train.precision)
    make_validation_dataset(config)
    candidates(config.train.resume, Path(config.train.output))
    if (found := newest_state(config)) and not config.train.allow_changes:
        state, folder = found
        check_compatible(folder, state, config, dataset.fingerprint)
    batches = check_batches(config, dataset, num_ranks)
    if config.model.init_from:
        check_vocabulary(config.model.init_from, dataset.tokenizer.k, dataset.tokenizer.vocab_size)
    if config.model.attention == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        raise ConfigError("model.attention: flash_attention_2 needs the package flash-attn; install it or take sdpa")
    epochs = config.train.steps * config.train.global_batch / dataset.num_windows
    phases = ", ".join(
        f"{end} (spans to {max(spans)})" for end, spans in zip(schedule.phase_ends, schedule.spans, strict=True)
    )
    return [
        f"data: {dataset.num_windows} windows of {config.data.window} tokens an epoch, {epochs:.2f} epochs",
        f"phases end at steps {phases}",
        batches,
        _memory_line(config, dataset.tokenizer.vocab_size, num_ranks),
        check_disk(config, dataset.tokenizer.vocab_size),
        f"fingerprint: {dataset.fingerprint}",
    ]


def _memory_line(config: RunConfig, vocab_size: int, num_ranks: int) -> str:
    """What a rank takes. The device is not known here: a GPU, unless the configuration is for fp32 alone."""
    zero = ZeroSettings.from_ds(load_ds_config(config.train.ds_config)[1])
    job = make_job(config, vocab_size, num_ranks, zero.stage != 0, *coming_plan(config))
    precision = "fp32" if job.work.value_bytes == FP32_BYTES else "half precision"
    return (
        f"memory: {config.train.ds_config} takes an estimated {estimate(job, zero).total / 2**30:.1f} GiB a rank in "
        f"{precision} (`dnabert-rm plan` has advice)"
    )


def newest_state(config: RunConfig) -> tuple[TrainState, Path] | None:
    """The state, and its checkpoint, that the run would go on from, if there is one that can be read.

    Which checkpoint is whole only the run itself finds out.
    """
    train = config.train
    source = Path(train.output if train.resume in ("auto", "never") else train.resume)
    own = [source] if (source / STATE_NAME).is_file() else []
    steps = [step_folder(source, step) for step in reversed(complete_steps(source))]
    for folder in [*own, *steps] if train.resume != "never" else []:
        with contextlib.suppress(CheckpointError):
            return read_state(folder), folder
    return None


def coming_plan(config: RunConfig) -> tuple[BatchPlan, int]:
    """The batches of the run and its first step."""
    if found := newest_state(config):
        state, _ = found
        return state.plan.changed(state.step, config.train.global_batch), state.step
    return make_plan(config), 0


def check_batches(config: RunConfig, dataset: WindowDataset, num_ranks: int) -> str:
    """A line on how ranks share the work; `ConfigError` where the batches don't divide or are larger than the data.

    Any number of shards serves any number of ranks and loader workers, because windows are dealt out and not shards.
    What the numbers change is how many lanes, hence open shards, each rank reads at a time.
    """
    plan, step = coming_plan(config)
    split = split_batch(plan, config.train.micro_batch, num_ranks, step)
    largest = split.global_batch
    if largest > dataset.num_windows:
        raise ConfigError(
            f"train.global_batch: {largest} is more than the {dataset.num_windows} windows of an epoch, so a "
            "batch would hold windows twice; lower --global-batch or --window, or build more data"
        )
    lanes = config.data.num_streams
    return (
        f"batches: {num_ranks} ranks x {split.micro_batch} windows x {split.accumulation(largest)} accumulation"
        f"; each rank reads {lanes // math.gcd(lanes, num_ranks)} of {lanes} lanes"
    )
