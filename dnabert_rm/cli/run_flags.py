"""The flags of a run configuration, made from its dataclasses: `--window 512` or `--data.window 512`."""

from __future__ import annotations

import argparse
import typing
from typing import Any

from dnabert_rm.config import (
    SECTIONS,
    FieldInfo,
    RunConfig,
    field_infos,
    load_config_file,
    load_preset,
    preset_names,
    resolve,
    type_name,
)
from dnabert_rm.model.pretrained import model_fields
from dnabert_rm.utils.errors import ConfigError

DEFAULT_PRESET = "base"
SHORT_FLAGS = {
    "data.path": "--data", "data.window": "--window", "data.strand": "--strand",
    "train.output": "--output", "train.steps": "--steps", "train.stop_after": "--stop-after",
    "train.global_batch": "--global-batch", "train.micro_batch": "--micro-batch", "train.precision": "--precision",
    "train.seed": "--seed", "train.save_every": "--save-every", "train.log_every": "--log-every",
    "train.ds_config": "--ds-config", "train.resume": "--resume", "train.allow_changes": "--allow-changes",
    "masking.policy": "--masking", "masking.phase_ends": "--phase-ends", "masking.phase_spans": "--phase-spans",
    "optim.lr": "--lr", "data.num_workers": "--workers", "data.on_bad_shard": "--on-bad-shard",
    "data.allow_pipe": "--allow-pipe",
    "model.init_from": "--init-from",
}  # fmt: skip


def add_run_flags(parser: argparse.ArgumentParser, own: str = "") -> None:
    """Add `--preset`, `--config` and one flag a field, with the text under the field as its help, by section.

    The usage line names the command's `own` flags alone: all of them would fill a screen.
    """
    parser.usage = f"%(prog)s {own} [--preset NAME] [--config FILE.toml] [--FIELD VALUE ...]"
    sizes = ", ".join(preset_names())
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, metavar="NAME", help=f"model size: {sizes} (default: {DEFAULT_PRESET})"
    )
    parser.add_argument("--config", metavar="FILE.toml", help="a configuration file; flags override it")
    groups = {name: parser.add_argument_group(f"[{name}]", cls.__doc__) for name, cls in SECTIONS.items()}
    for info in field_infos().values():
        dotted = f"--{info.name}"
        names = [SHORT_FLAGS[info.name], dotted] if info.name in SHORT_FLAGS else [dotted]
        kind: Any = info.type
        many: dict[str, Any] = {}
        if typing.get_origin(info.type) is tuple:
            kind, many = typing.get_args(info.type)[0], {"nargs": "+"}
        if info.type is bool:
            many = {"nargs": "?", "const": "true"}
        groups[info.name.split(".")[0]].add_argument(
            *names, dest=info.name, default=None, metavar=type_name(kind).upper(), help=_help(info), **many
        )


def _help(info: FieldInfo) -> str:
    return f"{info.text} (default: {info.shown_default})".replace("%", "%%")


def run_config(args: argparse.Namespace, defaults: dict[str, dict[str, Any]] | None = None) -> RunConfig:
    """The configuration that the flags make, over the file, over the preset; `ConfigError` holds every mistake.

    `defaults` stand below the preset: what a command can do without and others can't.
    """
    flags: dict[str, dict[str, Any]] = {}
    errors = []
    for info in field_infos().values():
        text = getattr(args, info.name)
        if text is None:
            continue
        section, key = info.name.split(".")
        try:
            flags.setdefault(section, {})[key] = _parse(text, info.type)
        except ValueError:
            flag = SHORT_FLAGS.get(info.name, f"--{info.name}")
            shown = " ".join(text) if isinstance(text, list) else text
            errors.append(f"{flag} {shown}: must be of type {type_name(info.type)}")
    layers = [*([load_config_file(args.config)] if args.config else []), flags]
    try:
        found = _init_fields(layers)
        preset = load_preset(args.preset, found.get("architecture") or _chosen(layers, "architecture"))
        config = resolve(defaults or {}, preset, {"model": found}, *layers)
        _refuse_other_sizes(config, found)
    except ConfigError as error:
        errors.append(str(error))
    if errors:
        raise ConfigError("\n  ".join(errors))
    return config


def _chosen(layers: list[dict[str, Any]], key: str) -> str | None:
    """What the last of the layers that names it says of a field of `[model]`, if any."""
    models = [layer["model"] for layer in layers if isinstance(layer.get("model"), dict)]
    return next((str(model[key]) for model in reversed(models) if key in model), None)


def _init_fields(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of `[model]` that `--init-from` sets; none where a run begins from random weights."""
    folder = _chosen(layers, "init_from")
    return model_fields(folder) if folder else {}


def _refuse_other_sizes(config: RunConfig, found: dict[str, Any]) -> None:
    """`ConfigError` where a flag or file asks for another architecture than that of `--init-from`."""
    for name, value in found.items():
        if (asked := getattr(config.model, name)) != value:
            raise ConfigError(f"model.{name}: is {asked}, but {config.model.init_from} has {value}; leave it out")


def _parse(text: Any, kind: Any) -> Any:
    """A flag's text as its field's type; lists take spaces or commas; ValueError where it does not fit."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        # A path may hold a comma; numbers can't.
        words = text if item is str else [word for part in text for word in part.split(",") if word]
        return [_parse(word, item) for word in words]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(text)
