"""Generator of docs/configuration.md from the dataclasses of `dnabert_rm/config/`, the flags and the presets.

With `--check`, write nothing and exit with 1 if the page is not up to date.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dnabert_rm.cli.check import COMMAND as CHECK
from dnabert_rm.cli.run_flags import DEFAULT_PRESET, flag_names
from dnabert_rm.config import (
    ARCHITECTURES,
    SECTIONS,
    RunConfig,
    free_on_resume,
    load_preset,
    preset_names,
    resolve,
    run_settings,
)
from dnabert_rm.config.schema import Setting
from dnabert_rm.genome import kmer
from dnabert_rm.model.flops import model_shape, num_parameters

PAGE = Path(__file__).with_name("configuration.md")
COMMAND = "python docs/write_configuration.py"
K = 6
"""k of the vocabulary for counting parameters: the default of `data_prep build`."""

INTRODUCTION = f"""\
# Configuration

Every setting of a pretraining run, with its flag and default. `make docs` writes this page from
`dnabert_rm/config/run_config.py` and `dnabert_rm/presets/`; change it there.
`dnabert-rm pretrain`, `check`, `plan` and `show-batch` take all of these flags.

## Which value counts

From the weakest to the strongest:

1. the default in the tables below;
2. the preset, `--preset NAME` (default `{DEFAULT_PRESET}`), see [Presets](#presets);
3. the configuration file, `--config FILE.toml`, with any fields under `[section]`;
4. the flag.

`--init-from DIR` comes between 2 and 3: the folder determines the architecture and its sizes. A file or flag with
other values is rejected. So is a folder whose `vocab.txt` or `tokenizer.json` differs from the data's vocabulary, or
that has neither. A BPE model is compared by the hash in an export's `pretraining.json`, or by its `.model` file.

- The flag of a field is its dotted name, `--optim.beta2 0.95`. Some fields also have a short flag.
- Separate the values of a list by spaces or commas: `--phase-spans 6 8 10` or `--phase-spans 6,8,10`. Separate paths by
  spaces only.
- A `bool` flag without a value means true: `--allow-changes`. Set it to false with `--data.overlap false`.
- Unknown names, values of the wrong type and values out of bounds are all reported at once, before anything runs. The
  message suggests the nearest name. `dnabert-rm check` with the same flags only makes these checks.
- A configuration file uses TOML's numbers, strings, booleans and lists: `phase_spans = [6, 8]`, `schedule = "cosine"`.

## What a run used

`RUN/config.toml` contains every field of the run, defaults included. Each checkpoint has a copy. So
`--config RUN/config.toml` gives the same configuration again, with any preset:

    dnabert-rm show-batch --config RUN/config.toml --step 60000
    deepspeed launch_scripts/pretrain.sh --config RUN/config.toml --output runs/second --seed 43

The command that started a run also resumes it. A resume compares all fields with the checkpoint's. It rejects
changes that would alter the result, unless you pass `--allow-changes`. Accepted changes are listed in
`RUN/changes.jsonl`. The fields that may change are listed under each table
([training.md](training.md#resuming)). With `--data.remainder drop` the global batch may not change.
"""
EXAMPLE_FILE = """\
[data]
path = ["prepared/yeast", "prepared/ecoli"]
weights = [0.7, 0.3]

[masking]
phase_ends = [0.25, 0.5, 1.0]
phase_spans = [6, 10, 14]

[optim]
schedule = "cosine"
lr = 3e-4
"""
EXAMPLE_FLAGS = "--preset small --config mine.toml --lr 1e-4 --output runs/mine --steps 20000"
EXAMPLE_FIELDS = (
    "model.hidden_size", "model.max_positions", "data.weights", "masking.phase_spans", "optim.schedule", "optim.lr",
    "train.steps",
)  # fmt: skip

PRESETS = f"""\
## Presets

A preset sets these fields of `[model]`, and `optim.lr`. All others keep their defaults. The number of parameters is for
{K}-mers ({kmer.vocab_size(K):,} ids), as in `dnabert-rm plan`. [training.md](training.md#sizes) lists the memory
of each size.
"""
NEEDED = {"data": {"path": ["prepared"]}, "train": {"output": "run"}}
"""Required fields that no preset sets."""


def page() -> str:
    """Return the text of docs/configuration.md."""
    sections = (section_text(name, cls) for name, cls in SECTIONS.items())
    return "\n".join([INTRODUCTION, example_text(), *sections, presets_text()])


def example_text() -> str:
    """Return the Markdown section with an example file, a command, and the source of each value."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.toml"
        file.write_text(EXAMPLE_FILE)
        _, flags = CHECK.parse("check", EXAMPLE_FLAGS.replace("mine.toml", str(file)).split())
        config = flags.config()
    sources = {
        "flag": _dotted(flags.fields),
        "file": _dotted(tomllib.loads(EXAMPLE_FILE)),
        f"preset `{flags.preset}`": _dotted(load_preset(flags.preset)),
    }
    rows = []
    for name in EXAMPLE_FIELDS:
        found = [source for source, names in sources.items() if name in names]
        over = f", over {' and '.join(found[1:])}" if found[1:] else ""
        rows.append(f"| `{name}` | {_value(config, name)} | {found[0] if found else 'default'}{over} |")
    return "\n".join(
        ["## Example", "", "`mine.toml`:", "", "```toml", EXAMPLE_FILE.rstrip(), "```", "",
         f"    dnabert-rm check {EXAMPLE_FLAGS}", "",
         "| field | value | from |", "|---|---|---|", *rows, ""]
    )  # fmt: skip


def _dotted(layer: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{section}.{key}" for section, content in layer.items() for key in content]


def _value(config: RunConfig, name: str) -> str:
    """Return the value of a field as text for the command line. `name` is the dotted name of the field."""
    section, key = name.split(".")
    value = getattr(getattr(config, section), key)
    items = value if isinstance(value, tuple) else (value,)
    return " ".join(item if isinstance(item, str) else f"{item:g}" for item in items)


def section_text(name: str, cls: type) -> str:
    """Return the text of a section: its purpose, a table of its fields, and the fields that may change on resume."""
    infos = [info for info in run_settings().values() if info.name.startswith(f"{name}.")]
    free = ", ".join(f"`{info.name}`" for info in infos if info.name in free_on_resume()) or "none of these fields"
    return "\n".join(
        [f"## `[{name}]`", "", str(cls.__doc__), "", "| flag | type | default | what it does |", "|---|---|---|---|",
         *map(field_row, infos), "", textwrap.fill(f"A resume may change {free}.", 120, break_on_hyphens=False), ""]
    )  # fmt: skip


def field_row(info: Setting) -> str:
    """Format a field as a row of its section's table."""
    flags = ", ".join(f"`{flag}`" for flag in flag_names(info.name))
    default = info.shown_default if info.shown_default == "empty" else f"`{info.shown_default}`"
    return f"| {flags} | {info.type_name} | {default} | {info.text.replace('|', chr(92) + '|')} |"


def presets_text() -> str:
    """Return the table of presets, with one row per preset and architecture."""
    pairs = [(preset, architecture) for preset in preset_names() for architecture in own_first(preset)]
    named = {name for pair in pairs for name in _dotted(load_preset(*pair))} - {"model.architecture"}
    columns = [name for name in run_settings() if name in named]
    heads = ["flags", "architecture", *(f"`{name.removeprefix('model.')}`" for name in columns), "parameters", "for"]
    return "\n".join(
        [
            PRESETS,
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *(preset_row(*pair, columns) for pair in pairs),
            "",
        ]
    )


def preset_row(preset: str, architecture: str, columns: list[str]) -> str:
    """Format a preset with one architecture as a row of the presets table.

    Only the row with the preset's default architecture shows the purpose of the preset.
    """
    config = resolve(load_preset(preset, architecture), {"model": {"architecture": architecture}, **NEEDED})
    own = load_preset(preset)["model"]["architecture"] == architecture
    flags = f"--preset {preset}" + ("" if own else f" --model.architecture {architecture}")
    count = f"{num_parameters(model_shape(config.model, kmer.vocab_size(K))) / 1e6:,.1f} M"
    cells = [
        f"`{flags}`",
        architecture,
        *(_value(config, name) for name in columns),
        count,
        purpose(preset) if own else "",
    ]
    return f"| {' | '.join(cells)} |"


def own_first(preset: str) -> list[str]:
    """Return all architectures, starting with the default of the preset."""
    own = load_preset(preset)["model"]["architecture"]
    return [own, *(name for name in ARCHITECTURES if name != own)]


def purpose(preset: str) -> str:
    """Return the purpose of a preset: the text after the colon in the first line of its file."""
    first = (resources.files("dnabert_rm") / "presets" / f"{preset}.toml").read_text(encoding="utf-8").splitlines()[0]
    return first.partition(": ")[2].rstrip(".")


def main() -> int:
    """Write the page, or compare it with the code if `--check` is passed. Return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"docs/{PAGE.name} does not match the code; run `make docs` (`{COMMAND}`)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
