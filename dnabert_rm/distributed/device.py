"""Which device a rank takes, and how many CPU threads."""

from __future__ import annotations

import os
import resource

import psutil
import torch

from dnabert_rm.distributed.launchers import RankInfo, slurm_rank
from dnabert_rm.utils.errors import ConfigError


def gpu_in_use() -> bool:
    """Whether ranks train on GPUs: there is one, and DeepSpeed was not told to take the CPU (DS_ACCELERATOR=cpu)."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def take_device(info: RankInfo) -> torch.device:
    """The device of this rank, made the current one; `ConfigError` where the node has no GPU for it."""
    if not gpu_in_use():
        return torch.device("cpu")
    device = torch.device("cuda", gpu_index(info.local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    # DeepSpeed takes its device from here, and insists that Open MPI's variable, where there is one, agrees.
    for name in {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"} & {"LOCAL_RANK", *os.environ}:
        os.environ[name] = str(device.index)
    return device


def gpu_index(local_rank: int, num_visible: int) -> int:
    """Which of the GPUs that this process sees is its own; `ConfigError` where there are fewer than ranks."""
    if num_visible == 1:
        return 0  # `srun --gpus-per-task=1` shows each rank its own
    if local_rank >= num_visible:
        raise ConfigError(
            f"local rank {local_rank} has no GPU, this node shows {num_visible}; start at most as many ranks a node as "
            "it has GPUs"
        )
    return local_rank


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: allocated by torch on a GPU, resident where it computes on CPUs."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def memory_of_rank(device: torch.device, local_world_size: int) -> float:
    """Bytes that a rank may take: its GPU's, or where it computes on CPUs, its share of the node's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total / local_world_size


def threads_of_rank(info: RankInfo, num_cores: int) -> int:
    """CPU threads of a rank whose process may use `num_cores`: its share of the node's.

    srun may give each task cores of its own, which are shared by the ranks of that task alone.
    """
    task, text = slurm_rank(os.environ), os.environ.get("SLURM_CPUS_PER_TASK", "")
    if task and text.isdigit():
        num_cores = min(int(text), num_cores) * task.local_world_size
    return max(1, num_cores // info.local_world_size)


def resolve_precision(precision: str) -> str:
    """ "auto" → "bf16" on a GPU that has it, else "fp32"; others as they are. `ConfigError` for fp16 on a CPU."""
    if precision == "fp16" and not gpu_in_use():
        raise ConfigError("train.precision: fp16 needs a GPU; choose bf16 or fp32")
    if precision != "auto":
        return precision
    return "bf16" if gpu_in_use() and torch.cuda.is_bf16_supported() else "fp32"
