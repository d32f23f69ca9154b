"""Read labelled sequences from CSV or TSV tables, hold out rows and parse labels. Errors name the file and line."""

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

from dnabert_rm.genome.fasta_stream import letter_advice
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file

SEQUENCE_COLUMN = "sequence"
LABEL_COLUMN = "label"
LABEL_SEPARATOR = ";"
"""Separator of several labels in one column. A field with only the separator means that the row has no label."""

# IUPAC codes for DNA, without U: the tokenizer knows only T, so every k-mer with a U would become [UNK].
_NOT_NUCLEOTIDE = re.compile("[^ACGTRYSWKMBDHVNacgtryswkmbdhvn]")
_INTEGER = re.compile(r"[+-]?\d+")


class RowError(Exception):
    """An unusable row. The caller adds the file name and the line number to the message."""


RowCheck = Callable[[str, Sequence[str]], object]
"""Function that takes a row's sequence and label columns, and raises `RowError` if the row is unusable."""


@dataclass(frozen=True)
class LabelledTable:
    """Rows of one table file, as parallel lists."""

    path: Path
    columns: tuple[str, ...]
    """Names of the label columns."""
    sequences: list[str]
    fields: list[tuple[str, ...]]
    """Label columns of each row, as text."""
    lines: list[int]
    """Line on which each row ends; the header is line 1."""

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def labels(self) -> list[str]:
        """Return the values of the first label column."""
        return [fields[0] for fields in self.fields]

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> LabelledTable:
        """Return a table with only the rows at `indices`, in the order of `indices`."""
        columns = ([column[i] for i in indices] for column in (self.sequences, self.fields, self.lines))
        return LabelledTable(self.path, self.columns, *columns)  # type: ignore[arg-type]


class BadRowHandler:
    """Handler of unusable rows. With `drop`, these rows are recorded and dropped. Otherwise they raise `DataError`."""

    def __init__(self, drop: bool = False):
        self.drop = drop
        self.errors: dict[Path, list[str]] = {}
        """Messages about the dropped rows of each file."""

    def handle(self, path: Path, line: int, error: object) -> None:
        """Record an unusable row if `drop` is set, otherwise raise `DataError`."""
        message = f"{path}:{line}: {error}"
        if not self.drop:
            raise DataError(message)
        self.errors.setdefault(path, []).append(message)

    def count(self, path: Path) -> int:
        """Return the number of dropped rows of a file."""
        return len(self.errors.get(path, ()))

    def passes(self, path: Path, line: int, check: RowCheck, sequence: str, fields: Sequence[str]) -> bool:
        """Return whether a row passes `check`. If it does not, call `handle`."""
        try:
            check(sequence, fields)
        except RowError as error:
            self.handle(path, line, error)
            return False
        return True

    def usable(self, table: LabelledTable, check: RowCheck) -> LabelledTable:
        """Return a table with only the rows that pass `check`. Call `handle` for each row that fails.

        Raises `DataError` if no row passes.
        """
        rows = enumerate(zip(table.lines, table.sequences, table.fields, strict=True))
        kept = [i for i, (line, sequence, fields) in rows if self.passes(table.path, line, check, sequence, fields)]
        return self.not_empty(table if len(kept) == len(table) else table.rows(kept))

    def not_empty(self, table: LabelledTable) -> LabelledTable:
        """Return `table` unchanged. Raise `DataError` if it has no rows."""
        if not table.sequences:
            errors = self.errors.get(table.path)
            reason = (
                f"no row can be used; the first error: {errors[0]}" if errors else "has a header but no rows; add rows"
            )
            raise DataError(f"{table.path}: {reason}")
        return table


def read_labelled(
    path: str | os.PathLike[str],
    columns: Sequence[str] = (LABEL_COLUMN,),
    check: RowCheck | None = None,
    bad_rows: BadRowHandler | None = None,
) -> LabelledTable:
    """Read a table with the column `sequence` and the label columns `columns`. Ignore other columns.

    Columns are separated by tabs if the header contains a tab, otherwise by commas. Sequences are IUPAC codes in
    upper or lower case. `check` gets each row's sequence and label columns, and raises `RowError` if the row is
    unusable.

    Raises `DataError` for an unusable table, and also for an unusable row unless `bad_rows` drops such rows. The
    message names the file, the fix, and the line if it is known.
    """
    path = Path(path)
    bad_rows = bad_rows or BadRowHandler()
    check_readable_file(path, f"a CSV or TSV table with the columns {SEQUENCE_COLUMN},{','.join(columns)}")
    table = LabelledTable(path, tuple(columns), [], [], [])

    def check_row(sequence: str, fields: Sequence[str]) -> None:
        _check_row(sequence, table.columns, fields)
        if check:
            check(sequence, fields)

    csv.field_size_limit(sys.maxsize)  # the default limit is 131,072 characters per field
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for line, sequence, fields in _rows(stream, path, columns, bad_rows):
                if bad_rows.passes(path, line, check_row, sequence, fields):
                    table.sequences.append(sequence)
                    table.fields.append(fields)
                    table.lines.append(line)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; pass an uncompressed CSV or TSV table in UTF-8") from None
    return bad_rows.not_empty(table)


def _rows(
    stream: Iterator[str], path: Path, columns: Sequence[str], bad_rows: BadRowHandler
) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield the line number, sequence and label columns of each row. Skip blank rows."""
    header = next(stream, "")
    if not header.strip():
        wanted = f"{SEQUENCE_COLUMN},{','.join(columns)}"
        raise DataError(f"{path}: is empty; write a header with the columns {wanted} on line 1")
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    sequence_index, *label_indices = (_column_index(path, names, name) for name in (SEQUENCE_COLUMN, *columns))
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            line = reader.line_num + 1
            if not fields or fields == [""]:
                continue
            if len(fields) != len(names):
                error = (
                    f"has {len(fields)} columns where the header has {len(names)};"
                    " fix the row, or quote fields that contain the delimiter"
                )
                bad_rows.handle(path, line, error)
                continue
            yield line, fields[sequence_index].strip(), tuple(fields[index].strip() for index in label_indices)
    except csv.Error as csv_error:
        raise DataError(f"{path}:{reader.line_num + 1}: not a valid row ({csv_error}); fix its quotes") from None


def _column_index(path: Path, names: list[str], wanted: str) -> int:
    found = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path}:1: has {len(found)} columns named {wanted!r}; keep one of them")
    hint = "; rename the column" + ("" if wanted == SEQUENCE_COLUMN else ", or pass its name with --label-columns")
    if len(names) == 1:
        hint = "; columns are separated by commas or tabs"
    elif any(_NOT_NUCLEOTIDE.search(name) is None and len(name) > 5 for name in names):
        hint = "; line 1 looks like a row: put the header sequence,label above it"
    shown = ", ".join(repr(name if len(name) <= 20 else name[:20] + "…") for name in names[:6])
    raise DataError(f"{path}:1: no column {wanted!r} (found: {shown}){hint}")


def _check_row(sequence: str, columns: Sequence[str], fields: Sequence[str]) -> None:
    if not sequence:
        raise RowError("the sequence is empty; fill in the sequence or remove the row")
    for column, field in zip(columns, fields, strict=True):
        if not field:
            what = "the label is missing" if len(columns) == 1 else f"the label {column} is missing"
            raise RowError(f"{what}; fill in the label or remove the row")
    wrong = _NOT_NUCLEOTIDE.search(sequence)
    if wrong:
        raise RowError(f"{wrong[0]!r} at base {wrong.start() + 1} is not a nucleotide; {letter_advice(wrong[0])}")


def hold_out(table: LabelledTable, every: int, seed: int) -> tuple[LabelledTable, LabelledTable]:
    """Hold out a random 1 / `every` of the rows, stratified by label. Return the remaining and the held-out rows.

    Rows are shuffled, then sorted by label. In the sorted list, the held-out rows are `every` positions apart. At least
    one row is held out. The rows of both returned tables are in file order.
    """
    order = random.permutation(random.key(seed, "finetune dev rows"), len(table))
    by_label = np.array(sorted(order, key=lambda index: table.fields[index]))
    held_out = by_label[min(every // 2, len(table) - 1) :: every]
    return table.rows(np.setdiff1d(by_label, held_out)), table.rows(np.sort(held_out))


def count_shared(table: LabelledTable, train: LabelledTable) -> int:
    """Count the rows of `table` whose sequence is also in `train`. Case and labels are ignored."""
    seen = {sequence.upper() for sequence in train.sequences}
    return sum(sequence.upper() in seen for sequence in table.sequences)


def class_names(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the distinct labels, sorted as numbers if all are integers, otherwise as text.

    Raises `DataError` with the table's path if there are fewer than two distinct labels.
    """
    names = set(labels)
    if len(names) < 2:
        raise DataError(f"{path}: every row has the label {labels[0]!r}; at least two classes are needed")
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def label_index(label: str, labels: Sequence[str]) -> int:
    """Return the index of `label` in `labels`, the training table's labels. Raise `RowError` for an unknown label."""
    if label not in labels:
        known = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
        raise RowError(
            f"the label {label!r} is not in the training table (its labels: {known}); fix the label or remove the row"
        )
    return labels.index(label)


def split_labels(text: str) -> list[str]:
    """Split a field into labels: `a;c` gives a and c, `;` gives no label."""
    return [name.strip() for name in text.split(LABEL_SEPARATOR) if name.strip()]


def parse_binary_labels(fields: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Parse one label per column, 0 or 1. Raise `RowError` for any other value."""
    for field, column in zip(fields, columns, strict=True):
        if field not in ("0", "1"):
            raise RowError(f"{column} is {field!r}; with several label columns, write 0 or 1 in each")
    return [int(field) for field in fields]


def parse_numbers(fields: Sequence[str], columns: Sequence[str]) -> list[float]:
    """Parse one finite number per column. Raise `RowError` for any other value."""
    numbers = []
    for field, column in zip(fields, columns, strict=True):
        try:
            numbers.append(float(field))
        except ValueError:
            raise RowError(f"{column} is {field!r}, not a number; --task regression needs numbers") from None
        if not math.isfinite(numbers[-1]):
            raise RowError(f"{column} is {field!r}; write a finite number")
    return numbers
