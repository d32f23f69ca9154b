"""Make the DeepSpeed configuration of a run: fill in "auto" values, reject contradictory settings. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnabert_rm.config import RunConfig
from dnabert_rm.config.deepspeed_config import (
    AUTO,
    accumulates_in_fp32,
    load_ds_config,
    offloads_optimizer,
    updates_on_device,
    zero_stage,
)
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.utils.errors import ConfigError

_NEVER_PRINT = 1 << 40
"""Disables DeepSpeed's own step messages; the run's metrics go to metrics.jsonl and TensorBoard."""

LEAF_MODULES = (
    "transformers.models.bert.modeling_bert.BertLayer",
    "transformers.models.modernbert.modeling_modernbert.ModernBertEncoderLayer",
)
"""Classes whose weights ZeRO-3 gathers and releases together.

By default it does so for each linear layer and norm, with hooks in Python that take most of the host's time.
"""


def ds_settings(
    config: RunConfig,
    split: BatchSplit | None = None,
    precision: str | None = None,
    local_world_size: int | None = None,
) -> dict[str, Any]:
    """Return a run's DeepSpeed configuration, with "auto" values filled in from the run configuration.

    `split` divides global batches into micro-batches. `split`, `precision` and `local_world_size` are known only after
    this rank has started. If one of these arguments is None, the DeepSpeed settings computed from it stay unchanged,
    even if they are "auto".

    Raises `ConfigError` for a setting that contradicts the run configuration.
    """
    path, settings = load_ds_config(config.train.ds_config)
    # Key path → (value, the run setting that it comes from).
    ours: dict[tuple[str, ...], tuple[Any, str]] = {
        ("gradient_clipping",): (config.optim.clip, "optim.clip"),
        ("steps_per_print",): (_NEVER_PRINT, "the run"),
    }
    if split:
        accumulation = split.accumulation(split.global_batch)
        accumulation_source = "train.global_batch / (train.micro_batch x ranks)"
        ours |= {
            ("train_batch_size",): (split.global_batch, "train.global_batch"),
            ("train_micro_batch_size_per_gpu",): (split.micro_batch, "train.micro_batch"),
            ("gradient_accumulation_steps",): (accumulation, accumulation_source),
        }
    if precision:
        ours |= {(name, "enabled"): (precision == name, "train.precision") for name in ("bf16", "fp16")}
    zero = settings.setdefault("zero_optimization", {})
    if local_world_size and zero.get("zero_hpz_partition_size") == AUTO:
        zero["zero_hpz_partition_size"] = local_world_size
    _fill_offload_dir(zero, config.train.offload_dir, path)
    for keys, (value, source) in ours.items():
        _fill(settings, keys, value, source, path)
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{path}: {key}: set this in [optim] of the run configuration; remove {key} here")
    _check_saving(settings, path)
    _check_stage(config, settings, precision, path)
    # DeepSpeed's throughput timer waits for the GPU twice per step.
    settings["timers"] = {"throughput": {"enabled": False}, **(settings.get("timers") or {})}
    if zero_stage(settings) == 3:
        zero.setdefault("leaf_module", {"classes": list(LEAF_MODULES)})
    if precision and updates_on_device(settings, precision):
        _replace_with_device_engine(settings)
    elif precision and split and accumulation > 1 and accumulates_in_fp32(settings, precision):
        settings.setdefault("data_types", {})["grad_accum_dtype"] = "fp32"
    return settings


def _replace_with_device_engine(settings: dict[str, Any]) -> None:
    """Turn off the parts of DeepSpeed that `DeviceEngine` replaces."""
    settings["gradient_clipping"] = 0.0
    settings["bf16"]["check_grad_overflow"] = False
    if zero_stage(settings) == 1:
        # Without these two, DeepSpeed registers a hook for each gradient.
        off = ("overlap_comm", "contiguous_gradients", "compute_grad_norm")
        settings["zero_optimization"] |= dict.fromkeys(off, False)


def _fill_offload_dir(zero: dict[str, Any], folder: str, path: Path) -> None:
    """Set each `nvme_path` that is "auto" to `folder`.

    Raises `ConfigError` if an `nvme_path` is "auto" and `folder` is "" or does not exist.
    """
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("nvme_path") != AUTO:
            continue
        if not folder:
            raise ConfigError(
                f"train.offload_dir: is not set, but {path} offloads to disk; pass a folder on a local NVMe disk"
            )
        if not Path(folder).is_dir():
            raise ConfigError(f"train.offload_dir: the folder {folder} does not exist; create it on every node")
        zero[part]["nvme_path"] = folder


def _fill(settings: dict[str, Any], keys: tuple[str, ...], value: Any, source: str, path: Path) -> None:
    """Set the DeepSpeed setting at the key path `keys` to `value`. `source` is the run setting that requires the value.

    Raises `ConfigError` if the DeepSpeed configuration file already sets a different value.
    """
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
    given = settings.get(keys[-1], AUTO)
    if given != AUTO and given != value:
        raise ConfigError(f'{path}: {".".join(keys)} is {given}, but {source} requires {value}; use "auto" instead')
    settings[keys[-1]] = value


def _check_saving(settings: dict[str, Any], path: Path) -> None:
    """Raise `ConfigError` for settings that change how DeepSpeed saves or loads checkpoints.

    For example, an asynchronous DeepSpeed writer would change checkpoint files after this run has hashed the files.
    """
    checkpoint = settings.get("checkpoint", {})
    is_set = {
        "checkpoint.writer.decoupled": (checkpoint.get("writer") or {}).get("decoupled"),
        "datastates_ckpt": settings.get("datastates_ckpt", {}).get("enabled"),
        "checkpoint.load_universal": checkpoint.get("load_universal"),
    }
    for key, value in is_set.items():
        if value:
            raise ConfigError(
                f"{path}: {key}: is not supported, as the run itself writes and converts checkpoints; remove {key}"
            )


def _check_stage(config: RunConfig, settings: dict[str, Any], precision: str | None, path: Path) -> None:
    """Raise `ConfigError` for settings that the ZeRO stage does not support."""
    stage = zero_stage(settings)
    if stage == 0 and precision in ("bf16", "fp16"):
        raise ConfigError(
            f"train.ds_config: {path} has ZeRO stage 0, where DeepSpeed's {precision} updates differ from those of all "
            "other stages; choose --ds-config zero1, which needs less memory and sends no more"
        )
    in_fp32 = settings.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    if in_fp32 and stage in (1, 2) and offloads_optimizer(settings) and precision != "fp32":
        raise ConfigError(
            f"{path}: data_types.grad_accum_dtype: with an offloaded optimizer at stage {stage}, DeepSpeed would skip "
            "all updates after the first overflow; remove this setting, or use stage 3"
        )
    if config.model.compile == "true" and stage == 3:
        raise ConfigError(
            f"model.compile: torch.compile cannot handle ZeRO-3 ({path}), which gathers weights inside each layer; "
            "choose --ds-config zero1 or zero2, or --model.compile auto"
        )
    if config.model.build == "partitioned" and stage != 3:
        raise ConfigError(
            f'model.build: "partitioned" needs ZeRO-3, but {path} has stage {stage}; choose --ds-config zero3'
        )
