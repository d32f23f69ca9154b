"""GPU of a rank among the visible ones, its number of CPU threads, and the precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dnabert_rm.config.run_config import TrainConfig
from dnabert_rm.distributed import device
from dnabert_rm.distributed.device import gpu_index, threads_of_rank
from dnabert_rm.distributed.launchers import RankInfo
from dnabert_rm.utils.errors import ConfigError

FOUR_TASKS = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FOUR_TASKS, "SLURM_CPUS_PER_TASK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def rank(local_rank: int, local_world_size: int) -> RankInfo:
    return RankInfo("torchrun", local_rank, local_world_size, local_rank, local_world_size)


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 1, 0), (3, 1, 0), (0, 4, 0), (3, 4, 3)])
def test_a_rank_uses_the_gpu_of_its_local_rank_or_the_only_visible_one(
    local_rank: int, visible: int, index: int
) -> None:
    assert gpu_index(local_rank, visible) == index


@pytest.mark.parametrize(("local_rank", "visible"), [(2, 2), (5, 4), (0, 0)])
def test_more_ranks_than_gpus_are_refused(local_rank: int, visible: int) -> None:
    with pytest.raises(
        ConfigError, match=f"local rank {local_rank} has no GPU, because only {visible} are visible on this node; start"
    ):
        gpu_index(local_rank, visible)


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(16, 4, 4), (16, 1, 16), (3, 2, 1), (2, 4, 1)])
def test_ranks_share_the_cores_of_their_node(cores: int, ranks: int, threads: int) -> None:
    assert threads_of_rank(rank(0, ranks), cores) == threads


@pytest.mark.parametrize(
    ("per_task", "cores", "ranks", "threads"),
    [
        ("4", 4, 4, 4),  # one rank per task, bound to four cores
        ("4", 16, 4, 4),  # not bound: still no more than was requested
        ("8", 4, 4, 4),  # bound to fewer cores
        ("8", 8, 8, 4),  # two ranks per task share its eight cores
    ],
)
def test_slurms_cores_per_task_are_shared_by_the_ranks_of_a_task(
    monkeypatch: pytest.MonkeyPatch, per_task: str, cores: int, ranks: int, threads: int
) -> None:
    for name, value in {**FOUR_TASKS, "SLURM_CPUS_PER_TASK": per_task}.items():
        monkeypatch.setenv(name, value)
    assert threads_of_rank(rank(1, ranks), cores) == threads


@pytest.mark.parametrize(
    ("ds_config", "precision", "gpu", "resolved"),
    [
        ("zero1", "auto", True, "bf16"),
        ("zero3", "auto", True, "bf16"),
        ("zero0", "auto", True, "fp32"),  # bf16 is refused at stage 0
        ("zero1", "auto", False, "fp32"),
        ("zero0", "bf16", True, "bf16"),
        ("zero1", "fp16", True, "fp16"),
    ],
)
def test_auto_is_a_precision_that_device_and_stage_support(
    ds_config: str, precision: str, gpu: bool, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "gpu_in_use", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    train = dataclasses.replace(TrainConfig(), ds_config=ds_config, precision=precision)
    assert device.resolve_precision(train) == resolved
