"""Configurations from layers: presets, files and flags over the defaults; strict keys, every error at once."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from dnabert_rm.config.run_config import ARCHITECTURES, SECTIONS, ModelConfig, RunConfig, mistakes
from dnabert_rm.config.schema import field_infos
from dnabert_rm.utils.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the shipped presets, smallest model first."""
    folder = resources.files("dnabert_rm") / "presets"
    found = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    size = {name: _layers_and_width(item.read_text()) for name, item in found.items()}
    return sorted(found, key=lambda name: size[name])


def _layers_and_width(text: str) -> tuple[int, int]:
    model = tomllib.loads(text)["model"]
    return model["hidden_size"], model["num_layers"]


def load_preset(name: str, architecture: str | None = None) -> dict[str, Any]:
    """Sections of a shipped preset for an architecture, by default the preset's own.

    A preset's table `[ARCHITECTURE]` holds the model fields in which that architecture differs. `ConfigError` lists
    the names where there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name}: no such preset; choose one of {', '.join(preset_names())}")
    sections = tomllib.loads((resources.files("dnabert_rm") / "presets" / f"{name}.toml").read_text())
    own = sections["model"].setdefault("architecture", ModelConfig.architecture)
    differences = {known: sections.pop(known, {}) for known in ARCHITECTURES}
    sections["model"] |= differences.get(architecture or own, {})
    return sections


def load_config_file(path: str) -> dict[str, Any]:
    """Sections of a user's TOML file; `ConfigError` names the file and what is wrong."""
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file; check the path") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}; mend the file") from None


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """One configuration from layers of sections, weakest first; `ConfigError` holds all errors, one a line."""
    errors: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, content in layer.items():
            errors += _merge(values, section, content)
    config = RunConfig(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    errors = errors or list(mistakes(config))
    if errors:
        raise ConfigError("\n  ".join(errors))
    return config


def _merge(values: dict[str, dict[str, Any]], section: str, content: Any) -> Iterator[str]:
    """Put one section's content over what is there; yields a line for every key or value that is wrong."""
    if section not in SECTIONS or not isinstance(content, Mapping):
        yield f"[{section}]: unknown section{_did_you_mean(section, list(SECTIONS))}"
        return
    infos = field_infos()
    for key, value in content.items():
        name = f"{section}.{key}"
        if name not in infos:
            yield f"{name}: unknown field{_did_you_mean(name, list(infos))}"
            continue
        try:
            values[section][key] = _converted(value, infos[name].type)
        except (TypeError, ValueError):
            yield f"{name}: {value!r} is not of type {type_name(infos[name].type)}"


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(known)})" if len(known) < 9 else ""


def type_name(kind: Any) -> str:
    """How messages call a field's type: "int", "float", "list of int" …"""
    return f"list of {typing.get_args(kind)[0].__name__}" if typing.get_origin(kind) is tuple else kind.__name__


def _converted(value: Any, kind: Any) -> Any:
    """`value` as the field's type; TypeError or ValueError where it is of another (no silent rounding)."""
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted(item, typing.get_args(kind)[0]) for item in items)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value
