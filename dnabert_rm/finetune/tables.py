"""Read labelled sequences from CSV or TSV files; every mistake names the file and the line."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.utils import random
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file

SEQUENCE_COLUMN, LABEL_COLUMN = "sequence", "label"


# IUPAC's codes for DNA. U is left out: the tokenizer knows T alone, and RNA read as [UNK] would train on nothing.
_NUCLEOTIDES = "ACGTRYSWKMBDHVNacgtryswkmbdhvn"


_NOT_NUCLEOTIDE = re.compile(f"[^{_NUCLEOTIDES}]")


class RowError(Exception):
    """What is wrong with one row; whoever reads the file adds its name and the line."""


RowCheck = Callable[[str, Sequence[str]], object]
"""Takes a row's sequence and its label columns; raises `RowError` where they can't be used."""


@dataclass(frozen=True)
class LabelledTable:
    """Rows of one file: sequences, their label columns as text, and the line each row ends on (1 is the header)."""

    path: Path
    columns: tuple[str, ...]
    """Names of the label columns."""
    sequences: list[str]
    fields: list[tuple[str, ...]]
    """The label columns of each row."""
    lines: list[int]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def labels(self) -> list[str]:
        """The first label column."""
        return [fields[0] for fields in self.fields]

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> LabelledTable:
        """The rows of these numbers, in this order."""
        columns = ([column[i] for i in indices] for column in (self.sequences, self.fields, self.lines))
        return LabelledTable(self.path, self.columns, *columns)  # type: ignore[arg-type]


class BadRows:
    """What becomes of rows that can't be used: the first ends the run, or they are left out and counted."""

    def __init__(self, drop: bool = False):
        self.drop = drop
        self.faults: dict[Path, list[str]] = {}
        """Of each file, what was wrong with the rows left out."""

    def join_rendezvous(self, path: Path, line: int, fault: object) -> None:
        """Note a row that is left out; `DataError` where rows may not be left out."""
        text = f"{path}:{line}: {fault}"
        if not self.drop:
            raise DataError(text)
        self.faults.setdefault(path, []).append(text)

    def count(self, path: Path) -> int:
        """Rows of a file that were left out."""
        return len(self.faults.get(path, ()))

    def passes(self, path: Path, line: int, check: RowCheck, sequence: str, fields: Sequence[str]) -> bool:
        """Whether a row passes a check; where it doesn't, it is noted."""
        try:
            check(sequence, fields)
        except RowError as fault:
            self.join_rendezvous(path, line, fault)
            return False
        return True

    def usable(self, table: LabelledTable, check: RowCheck) -> LabelledTable:
        """The rows of a table that pass a further check."""
        rows = enumerate(zip(table.lines, table.sequences, table.fields, strict=True))
        kept = [i for i, (line, sequence, fields) in rows if self.passes(table.path, line, check, sequence, fields)]
        return self.not_empty(table if len(kept) == len(table) else table.rows(kept))

    def not_empty(self, table: LabelledTable) -> LabelledTable:
        """The table; `DataError` where it has no rows."""
        if not table.sequences:
            first = self.faults.get(table.path)
            fault = f"no row can be used; {first[0]}" if first else "has a header but no rows"
            raise DataError(f"{table.path}: {fault}")
        return table


def read_labelled(
    path: str | os.PathLike[str],
    columns: Sequence[str] = (LABEL_COLUMN,),
    check: RowCheck | None = None,
    bad_rows: BadRows | None = None,
) -> LabelledTable:
    """Read a table with the column `sequence` and the label `columns`; other columns are passed over.

    Commas or tabs separate columns, whichever the header holds. Sequences are nucleotides in any case, IUPAC codes
    included. `check` looks at each row too. `DataError` names the file, the line and the mend; `bad_rows` may leave
    rows out instead.
    """
    path, bad_rows = Path(path), bad_rows or BadRows()
    check_readable_file(path, f"a CSV or TSV table with the columns {SEQUENCE_COLUMN},{','.join(columns)}")
    table = LabelledTable(path, tuple(columns), [], [], [])

    def check_row(sequence: str, fields: Sequence[str]) -> None:
        _check_row(sequence, table.columns, fields)
        if check:
            check(sequence, fields)

    csv.field_size_limit(sys.maxsize)  # the module's own limit is 131,072 letters a field
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for line, sequence, fields in _rows(stream, path, columns, bad_rows):
                if bad_rows.passes(path, line, check_row, sequence, fields):
                    table.sequences.append(sequence)
                    table.fields.append(fields)
                    table.lines.append(line)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; a CSV or TSV table in UTF-8 is expected, not compressed") from None
    return bad_rows.not_empty(table)


def _rows(
    stream: Iterator[str], path: Path, columns: Sequence[str], bad_rows: BadRows
) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line number, sequence and label columns of each row that is not blank."""
    header = next(stream, "")
    if not header.strip():
        wanted = f"{SEQUENCE_COLUMN},{','.join(columns)}"
        raise DataError(f"{path}: is empty; a header with the columns {wanted} is expected on line 1")
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    sequence_at, *labels_at = (_column(path, names, name) for name in (SEQUENCE_COLUMN, *columns))
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            line = reader.line_num + 1
            if not fields or fields == [""]:
                continue
            if len(fields) != len(names):
                fault = (
                    f"has {len(fields)} columns where the header has {len(names)};"
                    " mend the row, or quote a field that holds the delimiter"
                )
                bad_rows.join_rendezvous(path, line, fault)
                continue
            yield line, fields[sequence_at].strip(), tuple(fields[index].strip() for index in labels_at)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: not a valid row ({error})") from None


def _column(path: Path, names: list[str], wanted: str) -> int:
    found = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path}:1: has {len(found)} columns named {wanted!r}; keep one of them")
    hint = "; rename the column that holds it" + ("" if wanted == SEQUENCE_COLUMN else " or name it: --label-columns")
    if len(names) == 1:
        hint = "; columns are separated by commas or tabs"
    elif any(_NOT_NUCLEOTIDE.search(name) is None and len(name) > 5 for name in names):
        hint = "; it looks like a row: put the header sequence,label above it"
    shown = ", ".join(repr(name if len(name) <= 20 else name[:20] + "…") for name in names[:6])
    raise DataError(f"{path}:1: no column {wanted!r} (found: {shown}){hint}")


def _check_row(sequence: str, columns: Sequence[str], fields: Sequence[str]) -> None:
    if not sequence:
        raise RowError("the sequence is empty; remove the row or fill it in")
    for column, field in zip(columns, fields, strict=True):
        if not field:
            what = "the label is missing" if len(columns) == 1 else f"the label {column} is missing"
            raise RowError(f"{what}; remove the row or fill it in")
    wrong = _NOT_NUCLEOTIDE.search(sequence)
    if wrong:
        mend = "write T for U" if wrong[0] in "Uu" else "A, C, G, T and IUPAC's codes for ambiguous bases are known"
        raise RowError(f"{wrong[0]!r} at base {wrong.start() + 1} is not a nucleotide; {mend}")


def hold_out(table: LabelledTable, every: int, seed: int) -> tuple[LabelledTable, LabelledTable]:
    """Split a table by chance into the rest and one row in `every`, at least one, evenly over the labels.

    The rows, in random order within each label, are counted through. Both parts keep the file's order.
    """
    order = random.permutation(random.key(seed, "finetune dev rows"), len(table))
    by_label = np.array(sorted(order, key=lambda index: table.fields[index]))
    held_out = by_label[min(every // 2, len(table) - 1) :: every]
    return table.rows(np.setdiff1d(by_label, held_out)), table.rows(np.sort(held_out))


def count_shared(table: LabelledTable, train: LabelledTable) -> int:
    """Rows of `table` whose sequence stands in `train` too, whatever its case and label."""
    seen = {sequence.upper() for sequence in train.sequences}
    return sum(sequence.upper() in seen for sequence in table.sequences)


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
