"""Settings of all commands. Each setting is defined once for flags, configuration files and documentation."""

from dnabert_rm.config.merge import load_config_file, load_preset, preset_names, resolve
from dnabert_rm.config.run_config import (
    ARCHITECTURES,
    SECTIONS,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    free_on_resume,
    run_settings,
)

__all__ = [
    "ARCHITECTURES",
    "SECTIONS",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "free_on_resume",
    "load_config_file",
    "load_preset",
    "preset_names",
    "resolve",
    "run_settings",
]
