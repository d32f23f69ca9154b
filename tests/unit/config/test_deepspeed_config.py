"""DeepSpeed configurations that can't be meant: each a line that names the file, or the field, to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.config.deepspeed_config import accumulates_in_fp32
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.utils.errors import ConfigError

NVME = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "auto"}}}


def config_with(ds_config: Path | str, **sections: dict[str, Any]) -> RunConfig:
    needed = {"data": {"path": ["prepared"]}, "train": {"output": "run", "ds_config": str(ds_config)}}
    return resolve(needed, sections)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "fix the file"),
        ("[]", "must be a JSON object"),
        ('{"zero_optimization": 2}', "must be a JSON object"),
        ('{"optimizer": {"type": "Adam"}}', r"optimizer: set this in \[optim\]"),
        ('{"scheduler": {}}', r"scheduler: set this in \[optim\]"),
        ('{"gradient_clipping": 7}', 'gradient_clipping is 7, but optim.clip requires 1.0; use "auto" instead'),
        (
            '{"checkpoint": {"writer": {"decoupled": true}}}',
            "checkpoint.writer.decoupled: is not supported, as the run itself writes",
        ),
        (
            '{"checkpoint": {"load_universal": true}}',
            "checkpoint.load_universal: is not supported, as the run itself writes",
        ),
        ('{"zero_optimization": {"stage": "auto"}}', "zero_optimization.stage is 'auto'; use 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage is 4; use 0, 1, 2 or 3"),
        (
            '{"zero_optimization": {"offload_optimizer": "cpu"}}',
            'zero_optimization.offload_optimizer is "cpu", but must',
        ),
        ('{"bf16": true}', "bf16 is true, but must be a JSON object"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "5e8"}}', "size is '5e8'; write a plain"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, '
            '"data_types": {"grad_accum_dtype": "fp32"}}',
            "would skip all updates after the first overflow; remove this setting, or use stage 3",
        ),
        ('{"datastates_ckpt": {"enabled": true}}', "datastates_ckpt: is not supported, as the run itself writes"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        ds_settings(config_with(path))
    assert str(path) in str(raised.value)


def test_a_disk_to_offload_to_is_named_and_exists(tmp_path: Path) -> None:
    path = tmp_path / "nvme.json"
    path.write_text(json.dumps(NVME))
    with pytest.raises(ConfigError, match=r"train\.offload_dir: is not set, but .*nvme.json offloads to disk"):
        ds_settings(config_with(path))
    with pytest.raises(ConfigError, match="absent does not exist; create it on every node"):
        ds_settings(config_with(path, train={"offload_dir": str(tmp_path / "absent")}))
    settings = ds_settings(config_with(path, train={"offload_dir": str(tmp_path)}))
    assert settings["zero_optimization"]["offload_optimizer"]["nvme_path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "sections", "precision", "message"),
    [
        ("zero0", {}, "bf16", "choose --ds-config zero1"),
        ("zero0", {}, "fp16", "choose --ds-config zero1"),
        ("zero3", {"model": {"compile": True}}, "fp32", "choose --ds-config zero1 or zero2"),
        ("zero2", {"model": {"build": "partitioned"}}, "fp32", "has stage 2; choose --ds-config zero3"),
    ],
)
def test_settings_that_a_stage_does_not_allow(
    name: str, sections: dict[str, Any], precision: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ds_settings(config_with(name, **sections), precision=precision)


def test_auto_becomes_what_the_run_says() -> None:
    settings = ds_settings(config_with("zero3"), BatchSplit(48, 4, 3), "bf16", 3)
    batches = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [settings[name] for name in batches] == [48, 4, 4]
    assert settings["bf16"]["enabled"] and not settings["fp16"]["enabled"]
    assert settings["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("stage", "precision", "accumulation", "expected"),
    [(2, "bf16", 1, None), (2, "bf16", 4, "fp32"), (3, "fp16", 4, "fp32"), (1, "bf16", 4, None), (2, "fp32", 4, None)],
)
def test_micro_batches_are_added_in_fp32(stage: int, precision: str, accumulation: int, expected: str | None) -> None:
    """At stage 1 in bf16, `DeviceEngine` adds them."""
    split = BatchSplit(global_batch=8 * accumulation, micro_batch=8, world_size=1)
    settings = ds_settings(config_with(f"zero{stage}"), split, precision)
    assert settings.get("data_types", {}).get("grad_accum_dtype") == expected


OFFLOADED = [(1, "bf16", False), (1, "fp16", False), (2, "bf16", False), (2, "fp16", False), (3, "bf16", True)]


@pytest.mark.parametrize("device", ["cpu", "nvme"])
@pytest.mark.parametrize(("stage", "precision", "expected"), OFFLOADED)
def test_not_with_an_offloaded_optimizer_below_stage_3(stage: int, precision: str, expected: bool, device: str) -> None:
    """DeepSpeed would skip all updates after the first overflow, or replace its optimizer (nvme at stage 1)."""
    settings = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": device}}}
    assert accumulates_in_fp32(settings, precision) is expected


def test_a_files_own_type_of_gradients_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "bf16"}}')
    settings = ds_settings(config_with(path), BatchSplit(32, 8, 1), "bf16")
    assert settings["data_types"] == {"grad_accum_dtype": "bf16"}
