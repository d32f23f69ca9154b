"""Settings as frozen dataclasses: a field's type, default and docstring define its flag, help and documentation.

Simple types are str, int, float, bool, Path and a `Literal` of strings. The type of a field is a simple type X or
`tuple[X, ...]`, optionally with `| None`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import numbers
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dnabert_rm.utils.errors import ConfigError


def setting(default: Any = MISSING, **metadata: Any) -> Any:
    """Declare a field of a settings class, with a default and metadata.

    Args:
        default: value if the field is not set. A field without a default is required.
        minimum, above, maximum, below: bounds of a number, or of each number in a tuple.
        may_be_infinite: allow inf, which means no limit.
        flag: name of the flag; by default the field's name, with dashes.
        separator: splits one word into the items of a tuple; by default each item is a separate word.
        positional: the field takes the words of a command line that belong to no flag.
        hidden: leave the flag out of `--help`.
        internal: the field has no flag.
        free_on_resume: the field may change when a run resumes.
        off: name of the flag that sets a `bool` to false; the default is then true.
        metavar: placeholder for the value in the help.
        parse: function that converts the flag's text to the value; raises ValueError if the text is invalid.
    """
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, described for flags and documentation."""

    name: str
    type: Any
    """Type of the value, without `None`."""
    default: Any
    """`MISSING` if a value is required."""
    text: str
    metadata: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """Name of the flag, such as `--batch-size`. A positional setting has its metavar instead."""
        if self.metadata.get("positional"):
            return str(self.metadata.get("metavar") or self.name)
        own = self.name if "." in self.name else self.name.replace("_", "-")
        return str(self.metadata.get("off") or self.metadata.get("flag") or f"--{own}")

    @property
    def is_list(self) -> bool:
        """Whether the value of the setting is a list, which is stored as a tuple."""
        return typing.get_origin(self.type) is tuple

    @property
    def item_type(self) -> Any:
        """Type of a list's items, or of the value itself if it is not a list."""
        return typing.get_args(self.type)[0] if self.is_list else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed values, or an empty tuple if any value is allowed."""
        return typing.get_args(self.item_type) if typing.get_origin(self.item_type) is Literal else ()

    @property
    def type_name(self) -> str:
        """Name of the type in messages, such as "int" or "list of float"."""
        name = "str" if self.choices else self.item_type.__name__
        return f"list of {name}" if self.is_list else name

    @property
    def shown_default(self) -> str:
        """Default as written on the command line, or "empty" for an empty list or string."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, float):
            return f"{self.default:g}"
        if isinstance(self.default, tuple) and self.default:
            return (self.metadata.get("separator") or " ").join(map(str, self.default))
        return str(self.default) if self.default not in ((), "") else "empty"


@cache
def settings_of(cls: Any) -> dict[str, Setting]:
    """Return the fields of a settings class, keyed by name. `Setting.text` is the docstring below a field."""
    hints, texts = typing.get_type_hints(cls), _field_docstrings(cls)
    return {
        item.name: Setting(
            item.name, _without_none(hints[item.name]), item.default, texts.get(item.name, ""), item.metadata
        )
        for item in fields(cls)
    }


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstrings below the fields of a class and its bases, keyed by field. A class overrides its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        try:
            source = inspect.cleandoc(inspect.getsource(base))
        except (OSError, TypeError):  # an installation without sources has no help texts
            continue
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for item, after in itertools.pairwise(body):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[item.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return texts


def value_of_text(text: str | list[str], item: Setting) -> Any:
    """Convert a flag's words to the field's value. Raise ValueError if a word has the wrong type."""
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
    """Convert a Python or TOML value to the field's type. Raise TypeError if rounding or parsing would be needed."""
    if item.is_list:
        items = value if isinstance(value, list | tuple | range) else [value]
        return tuple(_converted(part, item.item_type) for part in items)
    return _converted(value, item.type)


def _converted(value: Any, kind: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind in (int, float) and isinstance(value, bool):
        raise TypeError(value)
    if kind is int:
        return operator.index(value)
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, bool) and str(value).lower() in typing.get_args(kind):
        return str(value).lower()
    if not isinstance(value, str if typing.get_origin(kind) is Literal else kind):
        raise TypeError(value)
    return value


def find_problems(item: Setting, value: Any, label: str) -> Iterator[str]:
    """Yield an error message, starting with `label`, for each value outside the field's choices or bounds."""
    rules = item.metadata
    for part in value if isinstance(value, tuple) else (value,):
        if part is None:
            continue
        if item.choices and part not in item.choices:
            yield f"{label} {part}: must be one of {', '.join(item.choices)}"
        if not isinstance(part, int | float) or isinstance(part, bool):
            continue
        shown = f"{label} {part:g}" if isinstance(part, float) else f"{label} {part}"
        if math.isnan(part) or (math.isinf(part) and not rules.get("may_be_infinite")):
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
    """Base class of a command's settings. Creating an object converts and checks its values.

    Raises `ConfigError` with all errors, one per line.
    """

    def __post_init__(self) -> None:
        problems: list[str] = []
        cls: Any = type(self)  # mypy does not treat a class with its own __hash__ as hashable
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
        """Yield an error message for each conflict between fields. Subclasses override this method."""
        yield from ()
