"""Configuration of a pretraining run: from its default, over the preset and a TOML file, to a flag, each stronger."""

from dnabert_rm.config.layers import load_config_file, load_preset, preset_names, resolve, type_name
from dnabert_rm.config.run_config import (
    ARCHITECTURES,
    SECTIONS,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from dnabert_rm.config.schema import FREE_TO_CHANGE, FieldInfo, field_infos

__all__ = [
    "ARCHITECTURES",
    "FREE_TO_CHANGE",
    "SECTIONS",
    "FieldInfo",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "field_infos",
    "load_config_file",
    "load_preset",
    "preset_names",
    "resolve",
    "type_name",
]
