"""Disk space for checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnabert_rm.config import RunConfig, load_preset, resolve
from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.model.flops import model_shape, num_parameters
from dnabert_rm.planning.disk_space import check_disk, checkpoint_bytes
from dnabert_rm.utils.errors import ConfigError

VOCAB = vocab_size(6)


def config_for(output: Path, ds_config: str, precision: str) -> RunConfig:
    train = {"output": str(output), "ds_config": ds_config, "precision": precision, "steps": 10, "save_every": 10}
    return resolve(load_preset("tiny"), {"data": {"path": ["d"]}, "train": train})


@pytest.mark.parametrize(
    ("ds_config", "precision", "bytes_per_parameter"),
    [("zero0", "fp32", 12), ("zero1", "fp32", 16), ("zero2", "bf16", 14), ("zero3", "bf16", 12)],
)
def test_bytes_of_a_checkpoint(tmp_path: Path, ds_config: str, precision: str, bytes_per_parameter: int) -> None:
    """`test_consistency_of_ranks.py` compares them with real files."""
    config = config_for(tmp_path, ds_config, precision)
    parameters = num_parameters(model_shape(config.model, VOCAB))
    assert checkpoint_bytes(config, VOCAB) == bytes_per_parameter * parameters


@pytest.mark.parametrize("name", ["step_00000005", "step_00000005.damaged"])
def test_only_checkpoints_that_a_run_deletes_count_as_free(tmp_path: Path, monkeypatch, name: str) -> None:
    config = config_for(tmp_path / "run", "zero0", "fp32")
    folder = tmp_path / "run" / "checkpoints" / name
    folder.mkdir(parents=True)
    with (folder / "mp_rank_00_model_states.pt").open("wb") as file:
        file.truncate(checkpoint_bytes(config, VOCAB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))  # no test can fill the disk
    if name.endswith(".damaged"):
        with pytest.raises(ConfigError, match=r"1 checkpoints of 0\.0 GB need"):
            check_disk(config, VOCAB)
    else:
        assert check_disk(config, VOCAB).startswith("checkpoints: 1 x 0.0 GB")
