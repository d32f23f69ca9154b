"""Settings as frozen dataclasses: a field's type, default and docstring are its flag, its help and its documentation.

Types of a field: str, int, float, bool, Path, a `Literal` of words, `tuple[X, ...]` of those, and any of them `| None`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dnabert_rm.utils.errors import ConfigError


def setting(default: Any = MISSING, **metadata: Any) -> Any:
    """Declare a field with more than a default.

    Args:
        default: value where the field is not set; required without one.
        minimum, above, maximum, below: bounds of a number, or of each number in a tuple.
        flag: name of the flag, by default the field's with dashes.
        separator: one word holds the items of a tuple, separated by this; by default each item is a word.
        positional: the words that belong to no flag.
        hidden: a flag that `--help` leaves out.
        internal: no flag at all.
        off: a `bool` that is true by default; its flag, of this name, makes it false.
        metavar: what the help shows in place of a value.
        parse: function from the flag's text to the value; raises ValueError.
    """
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, described for flags and documentation."""

    name: str
    type: Any
    """The type without `None`."""
    default: Any
    """`MISSING` where a value is required."""
    text: str
    metadata: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The flag, such as `--batch-size`; the metavar of a positional."""
        if self.metadata.get("positional"):
            return str(self.metadata.get("metavar") or self.name)
        own = self.name if "." in self.name else self.name.replace("_", "-")
        return str(self.metadata.get("off") or self.metadata.get("flag") or f"--{own}")

    @property
    def is_list(self) -> bool:
        """Whether the value is a tuple."""
        return typing.get_origin(self.type) is tuple

    @property
    def item_type(self) -> Any:
        """The type of one item of a tuple, or of the value itself."""
        return typing.get_args(self.type)[0] if self.is_list else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the value is one of; empty where any is allowed."""
        return typing.get_args(self.item_type) if typing.get_origin(self.item_type) is Literal else ()

    @property
    def type_name(self) -> str:
        """The type in messages: "int", "list of float" …"""
        name = "str" if self.choices else self.item_type.__name__
        return f"list of {name}" if self.is_list else name

    @property
    def shown_default(self) -> str:
        """The default as a flag takes it; "empty" for an empty list or text."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, float):
            return f"{self.default:g}"
        if isinstance(self.default, tuple) and self.default:
            return (self.metadata.get("separator") or " ").join(map(str, self.default))
        return str(self.default) if self.default not in ((), "") else "empty"


@cache
def settings_of(cls: Any) -> dict[str, Setting]:
    """Every field of a settings class by name, with the docstring under it in the source."""
    hints, texts = typing.get_type_hints(cls), _field_docstrings(cls)
    return {
        item.name: Setting(item.name, _without_none(hints[item.name]), item.default, texts[item.name], item.metadata)
        for item in fields(cls)
    }


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string literal that follows each field in the class bodies, base classes first."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        body = ast.parse(inspect.cleandoc(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for item, after in itertools.pairwise(body):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[item.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return texts


def value_of_text(text: str | list[str], item: Setting) -> Any:
    """A flag's words as the field's value; ValueError where they are of another type."""
    if parse := item.metadata.get("parse"):
        return parse(text)
    if not item.is_list:
        return _parse(str(text), item.type)
    words = [text] if isinstance(text, str) else text
    separator = item.metadata.get("separator") or ("," if item.item_type in (int, float) else None)
    if separator:
        words = [word.strip() for part in words for word in part.split(separator) if word.strip()]
    return tuple(_parse(word, item.item_type) for word in words)


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return text if typing.get_origin(kind) is Literal else kind(text)


def value_of(value: Any, item: Setting) -> Any:
    """A Python or TOML value as the field's type; TypeError where it is of another (no silent rounding)."""
    if item.is_list:
        items = value if isinstance(value, list | tuple | range) else [value]
        return tuple(_converted(part, item.item_type) for part in items)
    return _converted(value, item.type)


def _converted(value: Any, kind: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = str if typing.get_origin(kind) is Literal else kind
    if not isinstance(value, expected) or (kind is int and isinstance(value, bool)):
        raise TypeError(value)
    return value


def find_problems(item: Setting, value: Any, label: str) -> Iterator[str]:
    """Yield a line for each value outside of the field's choices or bounds; `label` names the field."""
    rules = item.metadata
    for part in value if isinstance(value, tuple) else (value,):
        if part is None:
            continue
        if item.choices and part not in item.choices:
            yield f"{label} {part}: must be one of {', '.join(item.choices)}"
        if not isinstance(part, int | float) or isinstance(part, bool):
            continue
        shown = f"{label} {part:g}" if isinstance(part, float) else f"{label} {part}"
        if not math.isfinite(part):
            yield f"{shown}: must be a finite number"
        elif "minimum" in rules and part < rules["minimum"]:
            yield f"{shown}: must be at least {rules['minimum']}"
        elif "above" in rules and part <= rules["above"]:
            yield f"{shown}: must be above {rules['above']}"
        elif "maximum" in rules and part > rules["maximum"]:
            yield f"{shown}: must be at most {rules['maximum']}"
        elif "below" in rules and part >= rules["below"]:
            yield f"{shown}: must be below {rules['below']}"


@dataclass(frozen=True)
class Settings:
    """Base class of a command's settings: values are converted and checked where the object is made.

    Raises `ConfigError` with every problem, one a line.
    """

    def __post_init__(self) -> None:
        problems: list[str] = []
        cls: Any = type(self)  # mypy takes no class with a __hash__ of its own for hashable
        for item in settings_of(cls).values():
            value = getattr(self, item.name)
            if value is None:
                continue
            try:
                object.__setattr__(self, item.name, value_of(value, item))
            except TypeError:
                problems.append(f"{item.flag} {value}: must be of type {item.type_name}")
            else:
                problems += find_problems(item, getattr(self, item.name), item.flag)
        problems = problems or list(self.problems())
        if problems:
            raise ConfigError("\n  ".join(problems))

    def problems(self) -> Iterator[str]:
        """Yield a line for each contradiction between fields; a subclass overrides it."""
        yield from ()
