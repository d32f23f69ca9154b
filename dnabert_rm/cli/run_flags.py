"""Flags of a run configuration: `--preset`, `--config`, and flags of fields, e.g. `--window` or `--data.window`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.compatibility import read_metadata
from dnabert_rm.checkpoint.run_folder import candidates
from dnabert_rm.config import RunConfig, load_config_file, load_preset, preset_names, resolve, run_settings
from dnabert_rm.config.command_line import Command, CommandParser, add_flag, make_settings, values_of
from dnabert_rm.config.run_config import SECTIONS
from dnabert_rm.model.pretrained import is_same_size, model_fields
from dnabert_rm.utils.errors import CheckpointError, ConfigError

DEFAULT_PRESET = "base"


@dataclass(frozen=True)
class RunFlags:
    """Configuration settings of a run, given as command-line flags, and the errors found in these flags."""

    preset: str = DEFAULT_PRESET
    config_file: str | None = None
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values set by flags, keyed by section and field."""
    unknown: Sequence[str] = ()
    """Error messages for unknown flags."""
    wrong_types: Sequence[str] = ()
    """Error messages for values of the wrong type."""
    words: Sequence[str] = ()
    """All words after the command's name, as given."""

    def config(self, placeholders: Mapping[str, Mapping[str, Any]] | None = None) -> RunConfig:
        """Return the run configuration. Flags override the configuration file, and the file overrides the preset.

        Args:
            placeholders: Values for required fields that the command does not need. Values from the preset, file or
                flags override them.

        Raises `ConfigError` with all errors.
        """
        problems = [*self.unknown, *self.wrong_types]
        layers = [*([load_config_file(self.config_file)] if self.config_file else []), self.fields]
        try:
            initial = _initial_model_fields(layers)
            preset = load_preset(self.preset, initial.get("architecture") or _field(layers, "model", "architecture"))
            config = resolve(placeholders or {}, preset, {"model": initial}, *layers)
            _refuse_other_sizes(config, initial)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n  ".join(problems))
        return config


@dataclass(frozen=True)
class RunCommand(Command):
    """Command that also takes the flags of a run configuration. Its `run` takes (settings, RunFlags)."""

    def parser(self, prog: str) -> CommandParser:
        """Return the parser. Its usage shows only the command's own flags, since all flags would fill a screen."""
        parser = super().parser(prog)
        parser.usage = f"%(prog)s {self.usage or ''} [--preset NAME] [--config FILE.toml] [--FIELD VALUE ...]"
        return parser

    def add_flags(self, parser: CommandParser) -> None:
        """Add the command's own flags, `--preset`, `--config`, and the flags of all fields, grouped by section."""
        super().add_flags(parser)
        sizes = ", ".join(preset_names())
        parser.add_argument("--preset", metavar="NAME", help=f"model size: {sizes} (default: {DEFAULT_PRESET})")
        parser.add_argument("--config", metavar="FILE.toml", help="a configuration file; flags override it")
        groups = {name: parser.add_argument_group(f"[{name}]", cls.__doc__) for name, cls in SECTIONS.items()}
        for name, item in run_settings().items():
            add_flag(groups[name.split(".")[0]], item, names=flag_names(name), show_empty=True)

    def parse(self, prog: str, words: Sequence[str]) -> tuple[Any, ...]:
        """Parse the words and return (settings, RunFlags). Errors in run flags are only raised by `RunFlags.config`."""
        parsed = self.parser(prog).parse_words(words)
        settings = make_settings(self.settings, parsed.flags, parsed.missing)
        values, wrong_types = values_of(parsed.flags, run_settings().values())
        fields: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, key = name.split(".")
            fields.setdefault(section, {})[key] = value
        preset = DEFAULT_PRESET if parsed.flags.preset is None else parsed.flags.preset
        return settings, RunFlags(preset, parsed.flags.config, fields, parsed.unknown, wrong_types, words)


def flag_names(name: str) -> list[str]:
    """Return the flags of the field with the dotted name `name`, e.g. `--window` and `--data.window`."""
    return list(dict.fromkeys([run_settings()[name].flag, f"--{name}"]))


def _field(layers: Sequence[Mapping[str, Any]], section: str, key: str) -> str | None:
    """Return the value of a field from the flags, else from the configuration file, else None."""
    sections = [layer[section] for layer in layers if isinstance(layer.get(section), dict)]
    return next((str(found[key]) for found in reversed(sections) if key in found), None)


def _initial_model_fields(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of `[model]` that `--init-from` sets. Return an empty dict without `--init-from`.

    A run with checkpoints does not need the folder any more. If it is gone, the sizes come from the newest checkpoint.
    """
    folder = _field(layers, "model", "init_from")
    if not folder:
        return {}
    try:
        return model_fields(folder)
    except CheckpointError:
        resume, run = _field(layers, "train", "resume") or "auto", Path(_field(layers, "train", "output") or "")
        for checkpoint in candidates(resume, run):
            with contextlib.suppress(CheckpointError):
                return read_metadata(checkpoint).shape
        raise


def _refuse_other_sizes(config: RunConfig, initial: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a flag or file contradicts the architecture or sizes of the `--init-from` model."""
    for name, value in initial.items():
        if not is_same_size(asked := getattr(config.model, name), value):
            raise ConfigError(f"model.{name}: is {asked}, but {config.model.init_from} has {value}; omit this setting")
