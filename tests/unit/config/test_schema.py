"""Settings classes: flags, defaults, types, bounds and docstrings of their fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dnabert_rm.config.command_line import Command, CommandGroup
from dnabert_rm.config.schema import Settings, setting, settings_of
from dnabert_rm.utils.errors import ConfigError


@dataclass(frozen=True)
class Base(Settings):
    """Fields that a subclass inherits."""

    rate: float = setting(0.5, above=0, below=1)
    """A rate."""
    sizes: tuple[int, ...] = setting((1, 2), minimum=1)
    """Some
    sizes."""


@dataclass(frozen=True, kw_only=True)
class Example(Base):
    """Every kind of field."""

    inputs: tuple[str, ...] = setting(positional=True, metavar="FILE")
    """Inputs."""
    output: Path = setting(metavar="DIR")
    """Output."""
    kind: Literal["a", "b"] = "a"
    """Kind."""
    limit: int | None = setting(None, minimum=3)
    """Limit."""
    names: tuple[str, ...] = setting((), separator=",")
    """Names."""
    quick: bool = False
    """Quick."""
    careful: bool = setting(True, off="--careless")
    """Not careful."""
    secret: int = setting(7, hidden=True)
    """Not in the help."""
    own: int = setting(1, internal=True)
    """No flag."""

    def problems(self) -> Iterator[str]:
        """Yield a contradiction."""
        if self.quick and self.limit:
            yield "--quick and --limit: pass one of them"


COMMAND = Command("example", "An example.", "example a --output o", Example, lambda settings: None)


def parse(*words: str) -> Example:
    (found,) = COMMAND.parse("example", words)
    return found


def test_flags_give_the_fields_their_types() -> None:
    found = parse("x", "y", "--output", "o", "--rate", ".25", "--sizes", "4,5", "6", "--kind", "b", "--limit", "3",
                  "--names", "p, q", "--careless", "--secret", "8")  # fmt: skip
    assert found == Example(
        inputs=("x", "y"), output=Path("o"), rate=0.25, sizes=(4, 5, 6), kind="b", limit=3, names=("p", "q"),
        careful=False, secret=8,
    )  # fmt: skip
    assert parse("x", "--output", "o") == Example(inputs=("x",), output=Path("o"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "0"], "--rate 0: must be above 0"),
        (["--rate", "1"], "--rate 1: must be below 1"),
        (["--rate", "nan"], "--rate nan: must be a finite number"),
        (["--sizes", "1", "0"], "--sizes 0: must be at least 1"),
        (["--limit", "2"], "--limit 2: must be at least 3"),
        (["--kind", "c"], "--kind c: must be one of a, b"),
        (["--limit", "3.5"], "--limit 3.5: must be of type int"),
        (["--sizes", "1,x"], "--sizes 1,x: must be of type list of int"),
        (["--own", "2"], "unrecognized arguments: --own 2"),
        (["--quick", "--limit", "3"], "--quick and --limit: pass one of them"),
    ],
)
def test_both_sides_of_each_rule(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse("x", "--output", "o", *words)
    assert str(raised.value).startswith(message)
    assert parse("x", "--output", "o", "--rate", "0.001", "--sizes", "1", "--limit", "3")


def test_python_values_are_checked_like_flags() -> None:
    assert Example(inputs=["x"], output="o", sizes=[3]).output == Path("o")  # type: ignore[arg-type]
    assert type(Example(inputs=("x",), output=Path("o"), limit=np.int64(3), rate=np.float32(0.5)).limit) is int
    with pytest.raises(ConfigError, match="--limit True: must be of type int"):
        Example(inputs=("x",), output=Path("o"), limit=True)
    with pytest.raises(ConfigError) as raised:
        Example(inputs=("x",), output=Path("o"), limit=1, kind="c")  # type: ignore[arg-type]
    assert str(raised.value).count("\n") == 1


def test_help_shows_docstrings_and_defaults() -> None:
    text = " ".join(COMMAND.parser("example").format_help().split())
    assert "A rate. (default: 0.5)" in text and "Some sizes. (default: 1 2)" in text
    assert "Not in the help" not in text and "No flag" not in text
    assert "usage: example [-h] [--rate FLOAT] [--sizes INT [INT ...]] --output DIR" in text


def test_every_shipped_setting_has_a_docstring_that_ends_a_sentence() -> None:
    from data_prep.cli import COMMANDS as PREP
    from dnabert_rm.cli.main import COMMANDS, load_command

    loaded = [load_command(name) for name in COMMANDS]
    grouped = [kind for command in loaded if isinstance(command, CommandGroup) for kind in command.kinds.values()]
    commands = [*PREP.values(), *grouped, *(command for command in loaded if isinstance(command, Command))]
    for command in commands:
        for item in settings_of(command.settings).values():
            assert item.text.endswith("."), f"{command.name}: {item.name}: {item.text}"
