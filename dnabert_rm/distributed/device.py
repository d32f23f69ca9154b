"""Device, memory, CPU threads and precision of a rank."""

from __future__ import annotations

import os
import resource

import psutil
import torch

from dnabert_rm.config.deepspeed_config import load_ds_config, zero_stage
from dnabert_rm.config.run_config import Precision, TrainConfig
from dnabert_rm.distributed.launchers import RankInfo, slurm_rank
from dnabert_rm.utils.errors import ConfigError


def gpu_in_use() -> bool:
    """Return whether ranks train on GPUs: a GPU is available, and DS_ACCELERATOR is not "cpu"."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def select_device(info: RankInfo) -> torch.device:
    """Return this rank's device. If the device is a GPU, also make this GPU torch's current device.

    Raises `ConfigError` if the node has no GPU for this rank.
    """
    if not gpu_in_use():
        return torch.device("cpu")
    device = torch.device("cuda", gpu_index(info.local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    # DeepSpeed reads its device from LOCAL_RANK, and requires Open MPI's variable, if set, to agree.
    for name in {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"} & {"LOCAL_RANK", *os.environ}:
        os.environ[name] = str(device.index)
    return device


def gpu_index(local_rank: int, num_visible: int) -> int:
    """Return the index of a rank's GPU among the visible GPUs. Raises `ConfigError` if no GPU is left."""
    if num_visible == 1:
        return 0  # `srun --gpus-per-task=1` shows each rank only its own GPU
    if local_rank >= num_visible:
        raise ConfigError(
            f"local rank {local_rank} has no GPU, because only {num_visible} are visible on this node; start at "
            "most as many ranks per node as it has GPUs"
        )
    return local_rank


def peak_memory(device: torch.device) -> int:
    """Return this process's peak memory in bytes: GPU memory allocated by torch, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def memory_of_rank(device: torch.device, local_world_size: int) -> float:
    """Return the memory for a rank in bytes: all memory of its GPU, or on CPUs its share of the node's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total / local_world_size


def threads_of_rank(info: RankInfo, num_cores: int) -> int:
    """Return the number of CPU threads for a rank: its share of the `num_cores` cores that this process may use.

    Usually all ranks of the node share these cores. If srun binds each task to separate cores, the ranks of one task
    share the cores of that task.
    """
    task = slurm_rank(os.environ)
    cores_per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if task and cores_per_task.isdigit():
        num_cores = min(int(cores_per_task), num_cores) * task.local_world_size
    return max(1, num_cores // info.local_world_size)


def resolve_precision(train: TrainConfig) -> Precision:
    """For "auto", return "bf16" if the GPU supports bf16 and the ZeRO stage does (1 to 3), otherwise "fp32".

    Return other values unchanged.

    Raises `ConfigError` for fp16 on a CPU.
    """
    precision = train.precision
    if precision == "fp16" and not gpu_in_use():
        raise ConfigError("train.precision: fp16 needs a GPU; choose bf16 or fp32")
    if precision != "auto":
        return precision
    settings = load_ds_config(train.ds_config)[1]
    return "bf16" if zero_stage(settings) and gpu_in_use() and torch.cuda.is_bf16_supported() else "fp32"
