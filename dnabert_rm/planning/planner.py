"""Planner of ZeRO stages: estimate memory and communication before a run, and recommend a stage.

Does not import torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import ZeroSettings, load_ds_config, zero_stage
from dnabert_rm.data.batching import BatchPlan, BatchSplit, make_batch_plan, split_batch
from dnabert_rm.genome import kmer
from dnabert_rm.masking.schedule import MaskSchedule, make_mask_schedule
from dnabert_rm.model.flops import ModelShape, model_shape, num_parameters
from dnabert_rm.planning.activations import Workload
from dnabert_rm.planning.memory import Memory, rank_memory
from dnabert_rm.utils.errors import ConfigError

CHOICES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
"""DeepSpeed configurations to choose from, ordered by increasing communication."""
USABLE_SHARE = 0.92
"""Usable share of a GPU's memory. CUDA context, NCCL and fragmentation take the rest. Assumed, not measured."""
TIGHT_SHARE = 0.9
"""Above this share of the usable memory, the advice says "tightly", since the estimate may be 10 % too low."""


@dataclass(frozen=True)
class Job:
    """Training job: model, micro-batch, division of batches among ranks, and global batch sizes.

    `sizes` are all global batch sizes that occur in the run. `masked` is the mean share of masked tokens in the run.
    `max_masked` is the largest share in any phase. `choices` are the DeepSpeed configurations to choose from.
    """

    shape: ModelShape
    work: Workload
    split: BatchSplit
    sizes: tuple[int, ...]
    masked: float
    max_masked: float
    choices: tuple[str, ...]

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps at the largest global batch."""
        return self.split.accumulation(self.split.global_batch)

    def with_micro_batch(self, micro_batch: int, checkpointing: bool | None = None) -> Job:
        """Return a copy of the job with another micro-batch size.

        If `checkpointing` is given, activation checkpointing is also turned on or off.
        """
        old = self.work
        work = dataclasses.replace(
            old,
            windows=micro_batch,
            num_masked=micro_batch * old.window_tokens * self.max_masked,
            checkpointing=old.checkpointing if checkpointing is None else checkpointing,
        )
        return dataclasses.replace(self, work=work, split=dataclasses.replace(self.split, micro_batch=micro_batch))

    def possible_micro_batches(self) -> list[int]:
        """Return the micro-batch sizes that divide each rank's share of every global batch, largest first."""
        largest = math.gcd(*self.sizes) // self.split.world_size
        return [size for size in range(largest, 0, -1) if largest % size == 0]


@dataclass(frozen=True)
class StageEstimate:
    """Estimate for a job with one DeepSpeed configuration.

    `fits` and `largest_micro_batch` are None if device memory is unknown.
    """

    name: str
    zero: ZeroSettings
    memory: Memory
    fits: bool | None
    largest_micro_batch: int | None
    message_bytes: float


def make_job(config: RunConfig, vocab_size: int, world_size: int, on_gpu: bool) -> Job:
    """Return the job of a new run. Raises `ConfigError` if the ranks can't share a batch equally."""
    plan = make_batch_plan(config)
    split = split_batch(plan, config.train.micro_batch, world_size)
    # The mask schedule needs k. A size that no k-mer vocabulary has belongs to a BPE model.
    k = next((k for k in range(1, 11) if kmer.vocab_size(k) == vocab_size), None)
    return job_of_run(config, vocab_size, plan, split, make_mask_schedule(config, k), on_gpu=on_gpu)


def job_of_run(
    config: RunConfig,
    vocab_size: int,
    plan: BatchPlan,
    split: BatchSplit,
    schedule: MaskSchedule,
    *,
    on_gpu: bool,
    first_step: int = 0,
) -> Job:
    """Return the job of a run that starts at `first_step`.

    Precision "auto" means bf16 on a GPU, and fp32 on a CPU and at ZeRO stage 0.
    """
    model, data, train = config.model, config.data, config.train
    settings = load_ds_config(train.ds_config)[1]
    steps = range(0, train.steps, max(1, train.steps // 1000))
    fractions = [schedule.expected_fraction(step) * (data.window - 2) / data.window for step in steps]
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and zero_stage(settings) else "fp32"
    work = Workload(
        windows=split.micro_batch,
        window_tokens=data.window,
        num_masked=0,
        precision=precision,
        attention="eager" if model.attention in ("eager", "math") else "sdpa",
        dropout=model.dropout,
        attention_dropout=model.dropout_of_attention,
        checkpointing=model.activation_checkpointing,
        on_gpu=on_gpu,
    )
    shape = model_shape(model, vocab_size)
    job = Job(
        shape=shape,
        work=work,
        split=split,
        sizes=tuple(plan.sizes(first_step)),
        masked=sum(fractions) / len(fractions),
        max_masked=max(fractions),
        choices=_choices(precision, settings, is_resumed=first_step > 0),
    )
    return job.with_micro_batch(split.micro_batch)


def message_bytes(job: Job, zero: ZeroSettings) -> float:
    """Return the bytes that a rank sends in a step with ring algorithms.

    For W ranks, the unit is (W - 1) / W times the bytes of all weights. The number of units is:

    - Stage 0: 2, for one all-reduce of the gradients.
    - Stage 1: 3, namely 2 for one all-reduce of the gradients and 1 to gather the updated weights. On GPUs
      `DeviceEngine` reduce-scatters the gradients, as in the ZeRO paper, which saves 1. It sends gradients that were
      added in fp32 in fp32, which doubles their units in half precision.
    - Stage 2: 2 per micro-batch for the gradients, plus 1 per step to gather the updated weights.
    - Stage 3: 3 per micro-batch, namely 1 to gather weights in the forward pass, 1 to gather weights again in the
      backward pass, and 1 to reduce gradients. If all weights can be kept between the two passes, 2 per micro-batch.
    """
    P, W = num_parameters(job.shape), job.split.world_size
    kept = min(zero.max_live, zero.max_reuse) >= P
    gradient_units = 1 if zero.flat_gradients and job.work.on_gpu else 2
    if zero.flat_gradients and zero.fp32_accumulation and job.accumulation > 1:
        gradient_units *= 2
    units_by_stage = {
        0: 2,
        1: gradient_units + 1,
        2: 2 * job.accumulation + 1,
        3: (2 if kept else 3) * job.accumulation,
    }
    units = units_by_stage[zero.stage]
    return units * job.work.value_bytes * P * (W - 1) / W


def estimate(job: Job, zero: ZeroSettings) -> Memory:
    """Return the estimated peak memory of one rank of a job."""
    return rank_memory(job.shape, job.work, zero, job.split.world_size, job.accumulation)


def largest_micro_batch(job: Job, zero: ZeroSettings, usable_bytes: float) -> int:
    """Return the largest possible micro-batch size that fits in `usable_bytes`, or 0 if none fits."""
    sizes = job.possible_micro_batches()
    return next((m for m in sizes if estimate(job.with_micro_batch(m), zero).total <= usable_bytes), 0)


def estimate_stages(job: Job, memory_bytes: float | None, ds_config: str = "") -> list[StageEstimate]:
    """Return the estimates for a job, lowest ZeRO stage first.

    They are for the job's `choices`. If `ds_config` is given and is not one of them, `ds_config` is appended.
    """
    names = list(job.choices)
    if ds_config and ds_config not in names:
        names.append(ds_config)
    found = [_option(job, name, memory_bytes) for name in names]
    if _is_half(job) and found[-1].zero.stage == 0:
        raise ConfigError(
            f"train.ds_config: {ds_config} has ZeRO stage 0, which trains in fp32 only; choose --ds-config zero1"
        )
    return found


def _is_half(job: Job) -> bool:
    return job.work.precision != "fp32"


def _choices(precision: str, settings: dict[str, Any], is_resumed: bool) -> tuple[str, ...]:
    """Return the DeepSpeed configurations in `CHOICES` that a run could change to.

    Stage 0 needs fp32. A resumed run can't change from or to stage 0, nor from an optimizer on a disk.
    """
    if is_resumed:
        if ZeroSettings.from_ds(settings, precision).offload_optimizer == "nvme":
            return ()
        return tuple(name for name in CHOICES if (name == "zero0") == (zero_stage(settings) == 0))
    return tuple(name for name in CHOICES if precision == "fp32" or name != "zero0")


def zero_settings(job: Job, name: str) -> ZeroSettings:
    """Return the ZeRO settings of a job with the DeepSpeed configuration `name`, a name in `ds_configs/` or a path."""
    return ZeroSettings.from_ds(load_ds_config(name)[1], job.work.precision)


def _option(job: Job, name: str, memory_bytes: float | None) -> StageEstimate:
    zero, usable = zero_settings(job, name), None if memory_bytes is None else memory_bytes * USABLE_SHARE
    memory = estimate(job, zero)
    return StageEstimate(
        name=name,
        zero=zero,
        memory=memory,
        fits=None if usable is None else memory.total <= usable,
        largest_micro_batch=None if usable is None else largest_micro_batch(job, zero, usable),
        message_bytes=message_bytes(job, zero),
    )


def best_option(found: list[StageEstimate]) -> StageEstimate | None:
    """Return the first option in `found` that fits in memory, or None if none fits."""
    return next((option for option in found if option.fits), None)


def advice(job: Job, found: list[StageEstimate], memory_bytes: float | None, configured: str) -> str:
    """Return one line that recommends an option, with the reason. `configured` names the run's current option."""
    current = next(option for option in found if option.name == configured)
    if memory_bytes is None:
        return f"{_uses(current)}; for advice, set --gpu-memory: GB of a GPU, or with --gpu cpu of a rank"
    usable, best = f"of {gib(memory_bytes * USABLE_SHARE)} usable", best_option(found)
    if best and current.fits and current.zero.is_like(best.zero):
        best = current  # a file of the user may be like one of ours
    if best is None:
        return f"{_uses(current)} {usable}, and no stage fits: {_flags_that_fit(job, memory_bytes)}"
    tight = ", tightly" if best.memory.total > TIGHT_SHARE * USABLE_SHARE * memory_bytes else ""
    text = f"{_uses(best)} {usable}, the lowest stage that fits{tight}"
    if (best.largest_micro_batch or 0) > job.work.windows:
        text += f", up to --micro-batch {best.largest_micro_batch}"
    if current.name == best.name:
        return text
    if not current.fits:
        reason = f"{_uses(current)}, which does not fit"
    elif current.zero.stage == 3 and best.zero.stage < 2:
        reason = f"ZeRO-3 ({current.name}) is not needed at this size"
    else:
        reason = f"{current.name} also fits, but needs more communication"
    return f"{text}; {reason}: choose --ds-config {best.name}"


def _uses(option: StageEstimate) -> str:
    return f"{option.name} takes an estimated {gib(option.memory.total)} per rank"


def gib(size: float) -> str:
    """Return a number of bytes for people, for example "1.5 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.05 * 2**30 else "<0.1 GiB"


def _flags_that_fit(job: Job, memory_bytes: float) -> str:
    """Return advice with the first set of flags that makes the run fit in memory.

    Try the DeepSpeed configurations without offload, each with the largest micro-batch up to the current size. If none
    fits, add activation checkpointing. If still none fits, also try the configurations with offload.
    """
    on_device = [name for name in job.choices if "offload" not in name]
    for checkpointing, candidates in ((job.work.checkpointing, on_device), (True, on_device), (True, job.choices)):
        for name in candidates:
            zero = zero_settings(job, name)
            changed = job.with_micro_batch(job.work.windows, checkpointing)
            size = min(largest_micro_batch(changed, zero, memory_bytes * USABLE_SHARE), job.work.windows)
            if size:
                flags = f"--ds-config {name} --micro-batch {size}"
                extra = " --model.activation_checkpointing" if checkpointing and not job.work.checkpointing else ""
                return f"choose {flags}{extra}"
    return "use more GPUs, or choose a smaller model"


def advice_line(job: Job, memory_bytes: float, ds_config: str) -> str:
    """Return the advice of `dnabert-rm plan` as one line to print at the start of a run.

    `memory_bytes` is the memory of a rank's GPU, or on CPUs the rank's share of the node's memory.
    """
    return f"plan: {advice(job, estimate_stages(job, memory_bytes, ds_config), memory_bytes, ds_config)}"
