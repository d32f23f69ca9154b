"""Merge a run configuration from defaults, preset, TOML file and flags. Later layers override earlier ones."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

from dnabert_rm.config.run_config import (
    ARCHITECTURES,
    SECTIONS,
    ModelConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
    run_config_problems,
    run_settings,
)
from dnabert_rm.config.schema import value_of
from dnabert_rm.utils.errors import ConfigError

Layer = Mapping[str, Any]
"""Sections of a configuration, keyed by name. Each section maps field names to values."""

REMOVED = frozenset({"data.allow_pipe"})
"""Former settings. They are ignored, because the stored configurations of earlier runs have them."""

MIN_VALIDATION_INTERVAL = 50
"""Least number of steps between validations, unless it is set."""


def preset_names() -> list[str]:
    """Return the names of the shipped presets, smallest model first."""
    folder = resources.files("dnabert_rm") / "presets"
    models = {
        item.name.removesuffix(".toml"): tomllib.loads(item.read_text(encoding="utf-8"))["model"]
        for item in folder.iterdir()
        if item.name.endswith(".toml")
    }
    return sorted(models, key=lambda name: (models[name]["hidden_size"], models[name]["num_layers"]))


def load_preset(name: str, architecture: str | None = None) -> dict[str, Any]:
    """Load a shipped preset for `architecture`, or for the preset's own architecture if `architecture` is None.

    A table named after an architecture, such as `[modernbert]`, overrides fields of `[model]` for that architecture.
    Raises `ConfigError` if there is no preset `name`.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name}: no such preset; choose one of {', '.join(preset_names())}")
    sections = tomllib.loads((resources.files("dnabert_rm") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
    own = sections["model"].setdefault("architecture", ModelConfig.architecture)
    differences = {known: sections.pop(known, {}) for known in ARCHITECTURES}
    sections["model"] |= differences.get(architecture or own, {})
    return sections


def load_config_file(path: str) -> dict[str, Any]:
    """Read a user's TOML file. Raise `ConfigError` with the path and the reason if the file can't be read."""
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file; check the path") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}; fix the file") from None


def resolve(*layers: Layer) -> RunConfig:
    """Merge layers, such as a preset and the flags, into one configuration. Later layers override earlier ones.

    Raises `ConfigError` with all errors, one per line.
    """
    errors: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, content in layer.items():
            errors += _merge(values, section, content)
    validation, steps = values["validation"], values["train"].get("steps", TrainConfig.steps)
    validation.setdefault("every", min(ValidationConfig.every, max(MIN_VALIDATION_INTERVAL, steps // 8)))
    config = RunConfig(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    errors = errors or list(run_config_problems(config))
    if errors:
        raise ConfigError("\n  ".join(errors))
    return config


def _merge(values: dict[str, dict[str, Any]], section: str, content: Any) -> Iterator[str]:
    """Merge a section, such as "train", of a configuration layer into `values`.

    Yields an error message for each wrong key or value.
    """
    if section not in SECTIONS or not isinstance(content, Mapping):
        yield f"[{section}]: unknown section{did_you_mean(section, SECTIONS)}"
        return
    known = run_settings()
    for key, value in content.items():
        name = f"{section}.{key}"
        if name in REMOVED:
            continue
        if name not in known:
            yield f"{name}: unknown field{did_you_mean(name, known)}"
            continue
        try:
            values[section][key] = value_of(value, known[name])
        except TypeError:
            yield f"{name}: {value!r} is not of type {known[name].type_name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to an error message: the most similar known word, or all words if there are few."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of {', '.join(names)}" if len(names) < 9 else ""
