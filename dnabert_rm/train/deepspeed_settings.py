"""DeepSpeed's settings for a run: "auto" filled in from the run configuration, contradictions refused. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import AUTO, load_ds_config, zero_stage
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.utils.errors import ConfigError


def ds_settings(
    config: RunConfig,
    split: BatchSplit | None = None,
    precision: str | None = None,
    local_world_size: int | None = None,
) -> dict[str, Any]:
    """DeepSpeed's configuration with "auto" filled in; a value that contradicts ours is a `ConfigError`.

    Without `split`, `precision` and `local_world_size`, which only a started rank knows, what hangs on them stays.
    """
    path, settings = load_ds_config(config.train.ds_config)
    # 1 << 40: DeepSpeed's own step messages; ours go to metrics.jsonl and TensorBoard.
    ours: dict[tuple[str, ...], tuple[Any, str]] = {
        ("gradient_clipping",): (config.optim.clip, "optim.clip"),
        ("steps_per_print",): (1 << 40, "nothing"),
    }
    if split:
        ours |= {
            ("train_batch_size",): (split.global_batch, "train.global_batch"),
            ("train_micro_batch_size_per_gpu",): (split.micro_batch, "train.micro_batch"),
            ("gradient_accumulation_steps",): (
                split.accumulation(split.global_batch), "train.global_batch / (train.micro_batch x ranks)",
            ),
        }  # fmt: skip
    if precision:
        ours |= {(name, "enabled"): (precision == name, "train.precision") for name in ("bf16", "fp16")}
    zero = settings.setdefault("zero_optimization", {})
    if local_world_size and zero.get("zero_hpz_partition_size") == AUTO:
        zero["zero_hpz_partition_size"] = local_world_size
    _fill_offload_dir(zero, config.train.offload_dir, path)
    for keys, (value, name) in ours.items():
        _fill(settings, keys, value, name, path)
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{path}: {key}: is set by [optim] of the run configuration; remove it")
    _check_saving(settings, path)
    _check_stage(config, zero_stage(settings), precision, path)
    return settings


def _check_saving(settings: dict[str, Any], path: Path) -> None:
    """DeepSpeed's engines that write on while training goes on finish after a checkpoint has been sealed."""
    writer = settings.get("checkpoint", {}).get("writer") or {}
    for key, used in {
        "checkpoint.writer.decoupled": writer.get("decoupled"),
        "datastates_ckpt": settings.get("datastates_ckpt", {}).get("enabled"),
        "checkpoint.load_universal": settings.get("checkpoint", {}).get("load_universal"),
    }.items():
        if used:
            raise ConfigError(f"{path}: {key}: checkpoints are written, and converted, by the run itself; remove it")


def _fill_offload_dir(zero: dict[str, Any], folder: str, path: Path) -> None:
    for part in ("offload_optimizer", "offload_param"):
        if zero.get(part, {}).get("nvme_path") != AUTO:
            continue
        if not folder:
            raise ConfigError(f"train.offload_dir: {path} offloads to a disk; name a folder on a local NVMe disk")
        if not Path(folder).is_dir():
            raise ConfigError(f"train.offload_dir: {folder} is no folder; make it on every node")
        zero[part]["nvme_path"] = folder


def _fill(settings: dict[str, Any], keys: tuple[str, ...], value: Any, ours: str, path: Path) -> None:
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
    there = settings.get(keys[-1], AUTO)
    if there != AUTO and there != value:
        raise ConfigError(f'{path}: {".".join(keys)} is {there}, but {ours} makes it {value}; set it to "auto"')
    settings[keys[-1]] = value


def _check_stage(config: RunConfig, stage: int, precision: str | None, path: Path) -> None:
    """`ConfigError` for settings that the ZeRO stage does not allow."""
    if stage == 0 and precision in ("bf16", "fp16"):
        raise ConfigError(
            f"train.ds_config: {path} has ZeRO stage 0, where DeepSpeed's {precision} updates differ from those of all "
            "other stages; choose zero1, which costs no more"
        )
    if config.model.compile and stage == 3:
        raise ConfigError(
            f"model.compile: ZeRO-3 ({path}) gathers weights inside each layer, which torch.compile cannot see; "
            "choose --ds-config zero1 or zero2, or leave it out"
        )
    if config.model.build == "partitioned" and stage != 3:
        raise ConfigError(f"model.build: partitioned needs ZeRO-3, but {path} has stage {stage}; choose zero3")
