"""Label columns as text → classes, names and numbers; `RowError` says what can't be read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from dnabert_rm.downstream.finetuning.tables import RowError
from dnabert_rm.errors import DataError

SEPARATOR = ";"
"""Between the names of several labels in one column; alone for a row that has none."""
_INTEGER = re.compile(r"[+-]?\d+")


def class_names(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """The classes among labels, sorted: as numbers where all are integers, else as text.

    `DataError`, with the table's path, where there are fewer than two.
    """
    names = set(labels)
    if len(names) < 2:
        raise DataError(f"{path}: every row has the label {labels[0]!r}; two classes or more are needed")
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def number(label: str, labels: Sequence[str]) -> int:
    """The number of a label among those of the training table."""
    if label not in labels:
        known = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
        raise RowError(f"the label {label!r} is not in the training table (which has {known})")
    return labels.index(label)


def names_in(text: str) -> list[str]:
    """The labels of a row in one column: `a;c` → a and c, `;` → none."""
    return [name.strip() for name in text.split(SEPARATOR) if name.strip()]


def yes_or_no(fields: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The labels of a row in a column each, 0 or 1."""
    for field, column in zip(fields, columns, strict=True):
        if field not in ("0", "1"):
            raise RowError(f"{column} is {field!r}; columns of several labels hold 0 or 1")
    return [int(field) for field in fields]


def numbers_in(fields: Sequence[str], columns: Sequence[str]) -> list[float]:
    """The numeric targets of a row, finite."""
    numbers = []
    for field, column in zip(fields, columns, strict=True):
        try:
            numbers.append(float(field))
        except ValueError:
            raise RowError(f"{column} is {field!r}, not a number; regression needs numbers") from None
        if not math.isfinite(numbers[-1]):
            raise RowError(f"{column} is {field!r}; a finite number is needed")
    return numbers
