"""The part of a DeepSpeed configuration that decides memory and messages. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ZeroSettings:
    """What memory and messages hang on of a DeepSpeed configuration; elements, not bytes. The defaults are its own."""

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

    @classmethod
    def from_ds(cls, settings: dict[str, Any]) -> ZeroSettings:
        """From a DeepSpeed configuration, as `ds_config.load_ds_config` reads it."""
        zero = settings.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        dtype = settings.get("data_types", {}).get("grad_accum_dtype")
        names = {
            "reduce_bucket": "reduce_bucket_size", "prefetch_bucket": "stage3_prefetch_bucket_size",
            "persistence_threshold": "stage3_param_persistence_threshold", "max_live": "stage3_max_live_parameters",
            "max_reuse": "stage3_max_reuse_distance", "sub_group": "sub_group_size",
        }  # fmt: skip
        return cls(
            stage=stage,
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none"),
            offload_weights=zero.get("offload_param", {}).get("device", "none"),
            gradient_bytes={"fp32": 4, "bf16": 2, "fp16": 2}.get(dtype or ""),
            **{ours: int(zero[theirs]) for ours, theirs in names.items() if zero.get(theirs, "auto") != "auto"},
        )
