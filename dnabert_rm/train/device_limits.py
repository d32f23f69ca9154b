"""Reject runs that are too large for their device, before the model is built."""

from __future__ import annotations

import torch

from dnabert_rm.config import RunConfig
from dnabert_rm.distributed.device import memory_of_rank
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.flops import training_flops_per_step
from dnabert_rm.planning.planner import Job, advice_line, estimate, zero_settings
from dnabert_rm.utils.errors import ConfigError

FLOPS_PER_THREAD = {"fp32": 1e11, "bf16": 1e12}
"""Operations per second of a CPU thread, at most. `tiny` and `mini` reach 0.8e11 and 1e11 in fp32 on a server core of
2023. With AMX, bf16 can be several times as fast."""
LONGEST_STEP_SECONDS = 300
_OVERRIDE = "or pass --train.allow_oversize true"


def check_device(config: RunConfig, job: Job, ranks: Ranks) -> None:
    """Check that the run fits in the memory of this rank's device, and on a CPU that a step ends in a few minutes.

    Raises `ConfigError` if not, unless `train.allow_oversize` is set.
    """
    if config.train.allow_oversize:
        return
    if ranks.device.type == "cpu":
        _check_step_time(config, job, ranks)
    memory = memory_of_rank(ranks.device, ranks.local_world_size)
    needed = estimate(job, zero_settings(job, config.train.ds_config)).total
    # Ranks of several nodes may count as one node's, so that the memory of a CPU rank is more than its share here.
    if needed > memory and (ranks.device.type == "cuda" or ranks.local_world_size < max(2, ranks.world_size)):
        advice = advice_line(job, memory, config.train.ds_config).removeprefix("plan: ")
        raise ConfigError(f"this run does not fit on this device: {advice}, {_OVERRIDE}")


def _check_step_time(config: RunConfig, job: Job, ranks: Ranks) -> None:
    windows, length = config.train.global_batch, config.data.window
    flops = training_flops_per_step(job.shape, windows, length, job.masked * windows * length)
    seconds = flops / (ranks.world_size * torch.get_num_threads() * FLOPS_PER_THREAD[config.train.precision])
    if seconds > LONGEST_STEP_SECONDS:
        raise ConfigError(
            f"without a GPU, a step of {windows} windows of {length} tokens takes at least {seconds / 60:.0f} minutes "
            f"with this model; choose --preset tiny --global-batch 32 --window 130, {_OVERRIDE}"
        )
