"""DeepSpeed's configuration: found, read, filled in from the run configuration, checked against it. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.config import RunConfig
from dnabert_rm.data.batches import BatchPlan, check_split
from dnabert_rm.errors import ConfigError

AUTO = "auto"


def shipped_ds_configs(package: Path) -> Path:
    """`ds_configs/` of the checkout that `package` lies in, or the copy that an installed package carries."""
    checkout = package.parent / "ds_configs"
    return checkout if checkout.is_dir() else package / "ds_configs"


DS_CONFIGS = shipped_ds_configs(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class BatchSplit:
    """How the global batches of a run are cut: `micro_batch` windows a forward pass, on `world_size` ranks.

    `global_batch` is the largest of those that are still to come.
    """

    global_batch: int
    micro_batch: int
    world_size: int

    def accumulation(self, global_batch: int) -> int:
        """Micro-batches that a rank takes of a global batch; `ConfigError` where it does not divide."""
        if global_batch % (self.micro_batch * self.world_size):
            raise ConfigError(
                f"train.global_batch: {global_batch} is not a multiple of train.micro_batch x ranks "
                f"({self.micro_batch} x {self.world_size}); change one of them"
            )
        return global_batch // (self.micro_batch * self.world_size)


def split_batch(plan: BatchPlan, micro_batch: int, world_size: int, first_step: int = 0) -> BatchSplit:
    """The split of a plan's batches from `first_step` on, all of which have to divide; `ConfigError` where one doesn't.

    `micro_batch` 0: the plan's smallest batch is not accumulated, so that a run that is resumed within or after a
    batch-size warm-up has the micro-batches of one that was not. Where that can't be, because an earlier part of the
    run had another number of ranks or another batch, the smallest batch to come is not accumulated.
    """
    coming = plan.sizes(first_step)
    if not micro_batch:
        smallest = plan.sizes()[0]
        fits = smallest % world_size == 0 and all(size % smallest == 0 for size in coming)
        micro_batch = check_split(smallest if fits else coming[0], world_size, 1)
    split = BatchSplit(coming[-1], micro_batch, world_size)
    for size in coming:
        split.accumulation(size)
    return split


def find_ds_config(name: str) -> Path:
    """A file, or the name of one in `ds_configs/`; `ConfigError` lists what is there."""
    for path in (Path(name), DS_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
    raise ConfigError(f"--ds-config {name}: no such file; give a path or one of {shipped}")


def load_ds_config(name: str) -> tuple[Path, dict[str, Any]]:
    """A DeepSpeed configuration and where it lies; `ConfigError` where it is missing or not JSON."""
    path = find_ds_config(name)
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ds-config {path}: {error}; mend the file") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization", {}), dict):
        raise ConfigError(f"--ds-config {path}: must hold one JSON object of DeepSpeed's settings; mend the file")
    return path, settings


def zero_stage(settings: dict[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed configuration, 0 where none is named."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """Whether the optimizer's states live in CPU memory or on a disk, and the update runs on the CPU."""
    device = settings.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return device in ("cpu", "nvme")


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
