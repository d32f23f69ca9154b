"""Read DeepSpeed configuration files, and find the ZeRO settings in them. Does not import torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.utils.errors import ConfigError

AUTO = "auto"


def shipped_ds_configs(package: Path) -> Path:
    """Return the folder `ds_configs/`, which is beside `package` in a checkout and inside an installed `package`."""
    checkout = package.parent / "ds_configs"
    return checkout if checkout.is_dir() else package / "ds_configs"


DS_CONFIGS = shipped_ds_configs(Path(__file__).resolve().parents[1])


def find_ds_config(name: str) -> Path:
    """Return the path of a DeepSpeed configuration, given its path or its name in `ds_configs/`.

    Raises `ConfigError` if there is no such file.
    """
    for path in (Path(name), DS_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
    raise ConfigError(f"--ds-config {name}: no such file; pass a path or one of {shipped}")


def load_ds_config(name: str) -> tuple[Path, dict[str, Any]]:
    """Read a DeepSpeed configuration, and return its path and settings.

    Raises `ConfigError` if the file is missing or does not contain a JSON object.
    """
    path = find_ds_config(name)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ds-config {path}: {error}; fix the file") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--ds-config {path}: must be a JSON object of DeepSpeed settings; fix the file")
    _check_objects(path, settings, _OBJECTS)
    zero = settings.get("zero_optimization", {})
    _check_objects(path, zero, _ZERO_OBJECTS, "zero_optimization.")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"--ds-config {path}: zero_optimization.stage is {stage!r}; use 0, 1, 2 or 3")
    for name in _SIZES.values():
        size = zero.get(name, AUTO)
        if size != AUTO and (isinstance(size, bool) or not isinstance(size, int | float)):
            raise ConfigError(f"--ds-config {path}: zero_optimization.{name} is {size!r}; write a plain number")
    return path, settings


_OBJECTS = ("zero_optimization", "bf16", "fp16", "data_types", "checkpoint", "datastates_ckpt", "timers")
_ZERO_OBJECTS = ("offload_optimizer", "offload_param")
_SIZES = {
    "reduce_bucket": "reduce_bucket_size",
    "prefetch_bucket": "stage3_prefetch_bucket_size",
    "persistence_threshold": "stage3_param_persistence_threshold",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "sub_group": "sub_group_size",
}
"""DeepSpeed's names of the sizes in `ZeroSettings`."""


def _check_objects(path: Path, settings: dict[str, Any], names: tuple[str, ...], prefix: str = "") -> None:
    """Raise `ConfigError` if a setting in `names` is given, but is not a JSON object."""
    for name in names:
        # DeepSpeed takes null for "not set" in some places.
        if name in settings and not isinstance(settings[name], dict) and (settings[name] is not None or not prefix):
            raise ConfigError(
                f"--ds-config {path}: {prefix}{name} is {json.dumps(settings[name])}, but must be a JSON object; "
                "fix the file"
            )


def zero_stage(settings: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration, or 0 if the configuration sets no stage."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """Return whether the optimizer is offloaded to CPU memory or a disk. If so, the CPU runs the update."""
    zero = settings.get("zero_optimization", {})
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    return device in ("cpu", "nvme") or bool(zero.get("cpu_offload"))  # the second is DeepSpeed's older name


OWN_REDUCTION = (
    "communication_data_type",
    "compile",
    "data_types",
    "gradient_predivide_factor",
    "prescale_gradients",
    "torch_autocast",
    "zenflow",
)
"""DeepSpeed settings that change how gradients are computed or summed. Only DeepSpeed's own engine supports them."""


def updates_on_device(settings: dict[str, Any], precision: str) -> bool:
    """Return whether `DeviceEngine` trains with these settings, instead of DeepSpeed's own engine.

    It does at ZeRO stages 0 and 1, without loss scaling (fp16) and without offload.
    """
    zero = settings.get("zero_optimization", {})
    return (
        zero_stage(settings) <= 1
        and precision != "fp16"
        and not offloads_optimizer(settings)
        and not any(name in settings or name in zero for name in OWN_REDUCTION)
    )


def accumulates_in_fp32(settings: dict[str, Any], precision: str) -> bool:
    """Return whether a step's micro-batches add their bf16 or fp16 gradients in fp32, unless the file says otherwise.

    Sums in half precision lose small gradients: after 512 micro-batches in bf16, the gradient of a small model is wrong
    by 8 %. There are two exceptions, where DeepSpeed 0.19 can't add in fp32. At stage 1 in bf16, its own engine would
    replace its optimizer. With an offloaded optimizer at stages 1 and 2, it keeps the sums on the device, and an
    overflow would stay in them for ever.
    """
    if precision not in ("bf16", "fp16") or "grad_accum_dtype" in settings.get("data_types", {}):
        return False
    stage = zero_stage(settings)
    if updates_on_device(settings, precision) or stage == 3:
        return True
    return not offloads_optimizer(settings) and (stage == 2 or precision == "fp16")


@dataclass(frozen=True)
class ZeroSettings:
    """ZeRO settings for memory and communication. Sizes are in elements, not bytes. Defaults are DeepSpeed's."""

    stage: int = 0
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    persistence_threshold: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap: bool = False
    offload_optimizer: str = "none"
    offload_weights: str = "none"
    gradient_bytes: int | None = None
    """Bytes of a gradient value, if the configuration sets its type."""
    fp32_accumulation: bool = False
    """Whether gradients of several micro-batches are added in fp32."""
    flat_gradients: bool = False
    """Whether `DeviceEngine` keeps one flat buffer of all gradients, instead of DeepSpeed's buckets."""

    def is_like(self, other: ZeroSettings) -> bool:
        """Return whether both have the same stage and offload. Sizes of buckets may differ."""
        return (self.stage, self.offload_optimizer, self.offload_weights) == (
            other.stage,
            other.offload_optimizer,
            other.offload_weights,
        )

    @classmethod
    def from_ds(cls, settings: dict[str, Any], precision: str) -> ZeroSettings:
        """Return the ZeRO settings of a DeepSpeed configuration that `load_ds_config` has read.

        `precision` is that of the run: bf16, fp16 or fp32. It decides which engine trains.
        """
        zero = settings.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        dtype = settings.get("data_types", {}).get("grad_accum_dtype")
        return cls(
            stage=stage,
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            offload_optimizer=(zero.get("offload_optimizer") or {}).get("device", "none"),
            offload_weights=(zero.get("offload_param") or {}).get("device", "none"),
            flat_gradients=stage == 1 and updates_on_device(settings, precision),
            fp32_accumulation=accumulates_in_fp32(settings, precision),
            gradient_bytes={"fp32": 4, "bf16": 2, "fp16": 2}.get(dtype or ""),
            **{ours: int(zero[theirs]) for ours, theirs in _SIZES.items() if zero.get(theirs, AUTO) != AUTO},
        )
