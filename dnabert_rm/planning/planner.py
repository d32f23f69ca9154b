"""Which ZeRO stage a model needs: memory, messages and time before anything runs. Estimates; torch-free."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import ZeroSettings, load_ds_config
from dnabert_rm.data.batching import BatchPlan, BatchSplit, make_plan, split_batch
from dnabert_rm.genome import kmer
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.flops import ModelShape, model_shape, num_parameters
from dnabert_rm.planning.activations import FP32_BYTES, Workload
from dnabert_rm.planning.memory import Memory, rank_memory
from dnabert_rm.utils.errors import ConfigError

CHOICES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
"""Shipped DeepSpeed configurations, the fewest messages first."""
USABLE_SHARE = 0.92
"""Of a GPU's memory: the rest is left to the CUDA context, NCCL and the allocator's gaps. Assumed, not measured."""

TIGHT_SHARE = 0.9
"""Of the usable memory: above it the advice says that an estimate can be wrong by what is left."""


@dataclass(frozen=True)
class Job:
    """What is trained, on how many ranks. `masked` is the share of tokens over the run, `masked_most` in one phase."""

    shape: ModelShape
    work: Workload
    split: BatchSplit
    sizes: tuple[int, ...]
    masked: float
    masked_most: float

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank and step, at the largest global batch."""
        return self.split.accumulation(self.split.global_batch)

    def with_micro_batch(self, micro_batch: int, checkpointing: bool | None = None) -> Job:
        """The same with other micro-batches, and checkpointing if given."""
        old = self.work
        tokens = micro_batch * old.window_tokens
        work = dataclasses.replace(
            old, windows=micro_batch, num_masked=tokens * self.masked_most,
            checkpointing=old.checkpointing if checkpointing is None else checkpointing,
        )  # fmt: skip
        return dataclasses.replace(self, work=work, split=dataclasses.replace(self.split, micro_batch=micro_batch))

    def micro_batches(self) -> list[int]:
        """Micro-batches that divide every global batch of the run, the largest first."""
        most = math.gcd(*self.sizes) // self.split.world_size
        return [size for size in range(most, 0, -1) if most % size == 0]


@dataclass(frozen=True)
class Option:
    """One DeepSpeed configuration for a job. `fits` is None where the device's memory is not known."""

    name: str
    zero: ZeroSettings
    memory: Memory
    fits: bool | None
    largest_micro_batch: int | None
    message_bytes: float


def make_job(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    on_gpu: bool,
    plan: BatchPlan | None = None,
    first_step: int = 0,
) -> Job:
    """The job of a configuration; precision "auto" is bf16 on a GPU, else fp32. `ConfigError` for uneven batches.

    `plan` is the run's from `first_step` on, by default that of a new run.
    """
    model, data, train = config.model, config.data, config.train
    plan = plan or make_plan(config)
    split = split_batch(plan, train.micro_batch, world_size, first_step)
    # The spans of the masks begin with k; a size that is no k-mer vocabulary's is a BPE model's.
    k = next((k for k in range(1, 11) if kmer.vocab_size(k) == vocab_size), None)
    schedule = make_mask_schedule(config, k)
    steps = range(0, train.steps, max(1, train.steps // 1000))
    fractions = [schedule.expected_fraction(step) * (data.window - 2) / data.window for step in steps]
    precision = train.precision if train.precision != "auto" else "bf16" if on_gpu else "fp32"
    work = Workload(
        windows=split.micro_batch,
        window_tokens=data.window,
        num_masked=0,
        value_bytes=FP32_BYTES if precision == "fp32" else 2,
        attention=model.attention,
        dropout=model.dropout,
        checkpointing=model.activation_checkpointing,
        on_gpu=on_gpu,
    )
    shape = model_shape(model, vocab_size)
    job = Job(shape, work, split, tuple(plan.sizes(first_step)), sum(fractions) / len(fractions), max(fractions))
    return job.with_micro_batch(split.micro_batch)


def message_bytes(job: Job, zero: ZeroSettings) -> float:
    """Bytes that a rank sends in a step, with ring algorithms, in units of all weights (W - 1) / W.

    Stage 0: one all-reduce, 2. Stage 1: the same, and a gather of the updated weights, 3 (the ZeRO paper's
    reduce-scatter would make it 2; DeepSpeed 0.19 reduces whole buckets). Stage 2: 2 a micro-batch, and 1. Stage 3:
    3 a micro-batch, for weights gathered forwards and backwards and the reduced gradients; 2 where all weights are
    few enough to be kept in between.
    """
    P, W = num_parameters(job.shape), job.split.world_size
    kept = min(zero.max_live, zero.max_reuse) >= P
    units = {
        0: 2, 1: 3, 2: 2 * job.accumulation + 1, 3: (2 if kept else 3) * job.accumulation,
    }[zero.stage]  # fmt: skip
    return units * job.work.value_bytes * P * (W - 1) / W


def estimate(job: Job, zero: ZeroSettings) -> Memory:
    """Memory of a rank of a job."""
    return rank_memory(job.shape, job.work, zero, job.split.world_size, job.accumulation)


def largest_micro_batch(job: Job, zero: ZeroSettings, usable_bytes: float) -> int:
    """The largest micro-batch that fits and divides the run's batches; 0 where none does."""
    sizes = job.micro_batches()
    return next((m for m in sizes if estimate(job.with_micro_batch(m), zero).total <= usable_bytes), 0)


def options(job: Job, memory_bytes: float | None, ds_config: str = "") -> list[Option]:
    """The shipped configurations that the precision allows, and `ds_config` where it is another; lowest stage first."""
    names = _choices(job)
    if ds_config and ds_config not in names:
        names.append(ds_config)
    found = [_option(job, name, memory_bytes) for name in names]
    if _is_half(job) and found[-1].zero.stage == 0:
        raise ConfigError(f"train.ds_config: {ds_config} has ZeRO stage 0, which trains in fp32 only; choose zero1")
    return found


def _is_half(job: Job) -> bool:
    return job.work.value_bytes < FP32_BYTES


def _choices(job: Job) -> list[str]:
    """The shipped configurations that the job's precision allows."""
    return [name for name in CHOICES if not (_is_half(job) and name == "zero0")]


def _settings(name: str) -> ZeroSettings:
    return ZeroSettings.from_ds(load_ds_config(name)[1])


def _option(job: Job, name: str, memory_bytes: float | None) -> Option:
    zero, usable = _settings(name), None if memory_bytes is None else memory_bytes * USABLE_SHARE
    memory = estimate(job, zero)
    return Option(
        name=name,
        zero=zero,
        memory=memory,
        fits=None if usable is None else memory.total <= usable,
        largest_micro_batch=None if usable is None else largest_micro_batch(job, zero, usable),
        message_bytes=message_bytes(job, zero),
    )


def best_option(found: list[Option]) -> Option | None:
    """The one with the fewest messages of those that fit."""
    return next((option for option in found if option.fits), None)


def advice(job: Job, found: list[Option], memory_bytes: float | None, configured: str) -> str:
    """What to choose and why, in one line; `configured` is the DeepSpeed configuration that the run has now."""
    now = next(option for option in found if option.name == configured)
    if memory_bytes is None:
        return f"{_uses(now)}; give --gpu-memory (with --gpu cpu: what a rank may take) for advice"
    usable, best = f"of {_gib(memory_bytes * USABLE_SHARE)} usable", best_option(found)
    if best is None:
        return f"{_uses(now)} {usable}, and no stage fits: {_way_out(job, memory_bytes)}"
    tight = ", tightly" if best.memory.total > TIGHT_SHARE * USABLE_SHARE * memory_bytes else ""
    text = f"{_uses(best)} {usable}, the lowest stage that fits{tight}"
    if (best.largest_micro_batch or 0) > job.work.windows:
        text += f", up to --micro-batch {best.largest_micro_batch}"
    if now.name == best.name:
        return text
    if not now.fits:
        reason = f"{_uses(now)}, which does not fit"
    elif now.zero.stage == 3 and best.zero.stage < 2:
        reason = f"ZeRO-3 ({now.name}) is pointless at this size"
    else:
        reason = f"{now.name} fits too, with more messages"
    return f"{text}; {reason}: choose --ds-config {best.name}"


def _uses(option: Option) -> str:
    return f"{option.name} takes an estimated {_gib(option.memory.total)} a rank"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _way_out(job: Job, memory_bytes: float) -> str:
    """The first of smaller micro-batches, checkpointing and offload that makes a stage fit."""
    names = _choices(job)
    plain = [name for name in names if "offload" not in name]
    for checkpointing, tried in ((job.work.checkpointing, plain), (True, plain), (True, names)):
        for name in tried:
            zero = _settings(name)
            changed = job.with_micro_batch(job.work.windows, checkpointing)
            size = min(largest_micro_batch(changed, zero, memory_bytes * USABLE_SHARE), job.work.windows)
            if size:
                flags = f"--ds-config {name} --micro-batch {size}"
                extra = " --model.activation_checkpointing" if checkpointing and not job.work.checkpointing else ""
                return f"choose {flags}{extra}"
    return "take more GPUs, or a smaller model"


def advice_line(job: Job, memory_bytes: float, ds_config: str) -> str:
    """The advice of `dnabert-rm plan` for a run that begins, in one line.

    Args: `memory_bytes` of a rank's GPU, or on CPUs its share of the node's.
    """
    return f"plan: {advice(job, options(job, memory_bytes, ds_config), memory_bytes, ds_config)}"
