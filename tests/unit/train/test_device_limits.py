"""Runs that are too large for their device are refused before the model is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import clean_environment, random_bases, write_prepared

from dnabert_rm.config import RunConfig, load_preset, resolve
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.planning.planner import make_job
from dnabert_rm.train.device_limits import check_device
from dnabert_rm.utils.errors import EXIT_USER_ERROR, ConfigError


def config_of(preset: str, **train: object) -> RunConfig:
    return resolve(
        load_preset(preset),
        {"data": {"path": ["d"], "window": 130}, "train": {"output": "r", "precision": "fp32", **train}},
    )


def check(config: RunConfig, num_nodes: int = 1, local_world_size: int = 1) -> None:
    ranks = Ranks(0, num_nodes * local_world_size, 0, local_world_size, torch.device("cpu"))
    check_device(config, make_job(config, 4101, 1, on_gpu=False), ranks)


def test_a_small_model_is_accepted() -> None:
    check(config_of("tiny", global_batch=32))


@pytest.mark.parametrize("preset", ["base", "large"])
def test_steps_of_minutes_are_refused_on_a_cpu(preset: str) -> None:
    with pytest.raises(ConfigError, match=r"at least \d+ minutes .* choose --preset tiny --global-batch 32"):
        check(config_of(preset, global_batch=100_000))
    check(config_of(preset, global_batch=100_000, micro_batch=1, allow_oversize=True))


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not fit on this device: .*, or pass --train\.allow_oversize true"):
        check(config_of("base", global_batch=8), num_nodes=2, local_world_size=1000)
    # A launcher that doesn't say how many ranks a node has: all of them may be on this one, or one on each.
    check(config_of("base", global_batch=8), local_world_size=1000)


def test_the_command_writes_nothing(tmp_path: Path) -> None:
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 70_000)]], k=4)
    flags = ["--preset", "1b", "--global-batch", "128", "--steps", "4", "--train.threads_per_rank", "1"]
    command = [sys.executable, "-m", "dnabert_rm", "pretrain", *flags, "--data", "prepared", "--output", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == EXIT_USER_ERROR and "choose --preset tiny" in done.stderr, done.stderr
    assert not list((tmp_path / "run").glob("[!.]*"))
