"""Labelled sequences from CSV or TSV files, with every mistake named by file and line."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import draws
from dnabert_rm.errors import DataError, check_readable_file

SEQUENCE_COLUMN, LABEL_COLUMN = "sequence", "label"
# IUPAC's codes for DNA. U is left out: the tokenizer knows T alone, and RNA read as [UNK] would train on nothing.
_NUCLEOTIDES = "ACGTRYSWKMBDHVNacgtryswkmbdhvn"
_NOT_NUCLEOTIDE = re.compile(f"[^{_NUCLEOTIDES}]")
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class LabelledTable:
    """Rows of one file: sequences, their labels as text, and the line each row ends on (1 is the header)."""

    path: Path
    sequences: list[str]
    labels: list[str]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.sequences)

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> LabelledTable:
        """The rows of these numbers, in this order."""
        columns = ([column[i] for i in indices] for column in (self.sequences, self.labels, self.lines))
        return LabelledTable(self.path, *columns)  # type: ignore[arg-type]


def read_labelled(path: str | os.PathLike[str]) -> LabelledTable:
    """Read a table with the columns `sequence` and `label`; other columns are passed over.

    Commas or tabs separate columns, whichever the header holds. Sequences are nucleotides in any
    case, IUPAC codes included. `DataError` names the file, the line and the mend.
    """
    path = Path(path)
    check_readable_file(path, "a CSV or TSV table with the columns sequence,label")
    table = LabelledTable(path, [], [], [])
    csv.field_size_limit(sys.maxsize)  # the module's own limit is 131,072 letters a field
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for line, sequence, label in _rows(stream, path):
                _check_row(path, line, sequence, label)
                table.sequences.append(sequence)
                table.labels.append(label)
                table.lines.append(line)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; a CSV or TSV table in UTF-8 is expected, not compressed") from None
    if not table.sequences:
        raise DataError(f"{path}: has a header but no rows")
    return table


def _rows(stream: Iterator[str], path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, sequence and label of each row that is not blank."""
    header = next(stream, "")
    if not header.strip():
        raise DataError(f"{path}: is empty; a header with the columns sequence,label is expected on line 1")
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    sequence_at, label_at = (_column(path, names, name) for name in (SEQUENCE_COLUMN, LABEL_COLUMN))
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            line = reader.line_num + 1
            if not fields or fields == [""]:
                continue
            if len(fields) != len(names):
                raise DataError(
                    f"{path}:{line}: has {len(fields)} columns where the header has {len(names)};"
                    " mend the row, or quote a field that holds the delimiter"
                )
            yield line, fields[sequence_at].strip(), fields[label_at].strip()
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: not a valid row ({error})") from None


def _column(path: Path, names: list[str], wanted: str) -> int:
    found = [index for index, name in enumerate(names) if name.lower() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path}:1: has {len(found)} columns named {wanted!r}; keep one of them")
    hint = ""
    if len(names) == 1:
        hint = "; columns are separated by commas or tabs"
    elif any(_NOT_NUCLEOTIDE.search(name) is None and len(name) > 5 for name in names):
        hint = "; it looks like a row: put the header sequence,label above it"
    shown = ", ".join(repr(name if len(name) <= 20 else name[:20] + "…") for name in names[:6])
    raise DataError(f"{path}:1: no column {wanted!r} (found: {shown}){hint or '; rename the column that holds it'}")


def _check_row(path: Path, line: int, sequence: str, label: str) -> None:
    if not sequence:
        raise DataError(f"{path}:{line}: the sequence is empty; remove the row or fill it in")
    if not label:
        raise DataError(f"{path}:{line}: the label is missing; remove the row or fill it in")
    wrong = _NOT_NUCLEOTIDE.search(sequence)
    if wrong:
        mend = "write T for U" if wrong[0] in "Uu" else "A, C, G, T and IUPAC's codes for ambiguous bases are known"
        raise DataError(f"{path}:{line}: {wrong[0]!r} at base {wrong.start() + 1} is not a nucleotide; {mend}")


def class_names(table: LabelledTable) -> list[str]:
    """The labels of a training table, sorted: as numbers where all are integers, else as text.

    `DataError` where there are fewer than two.
    """
    names = set(table.labels)
    if len(names) < 2:
        raise DataError(f"{table.path}: every row has the label {table.labels[0]!r}; two classes or more are needed")
    if all(_INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def class_numbers(table: LabelledTable, names: Sequence[str], train: Path) -> NDArray[np.int64]:
    """The number of each row's class, (N,); `DataError` for a label that `train` does not have."""
    numbers = {name: number for number, name in enumerate(names)}
    for label, line in zip(table.labels, table.lines, strict=True):
        if label not in numbers:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise DataError(f"{table.path}:{line}: the label {label!r} is not in {train} (which has {known})")
    return np.array([numbers[label] for label in table.labels], dtype=np.int64)


def hold_out(table: LabelledTable, every: int, seed: int) -> tuple[LabelledTable, LabelledTable]:
    """Split a table by chance into the rest and one row in `every`, at least one, evenly over the classes.

    The rows, in random order within each class, are counted through. Both parts keep the file's order.
    """
    order = draws.permutation(draws.key(seed, "finetune dev rows"), len(table))
    order = order[np.argsort(np.array(table.labels)[order], kind="stable")]
    held_out = order[min(every // 2, len(table) - 1) :: every]
    return table.rows(np.setdiff1d(order, held_out)), table.rows(np.sort(held_out))


def count_shared(table: LabelledTable, train: LabelledTable) -> int:
    """Rows of `table` whose sequence stands in `train` too, whatever its case and label."""
    seen = {sequence.upper() for sequence in train.sequences}
    return sum(sequence.upper() in seen for sequence in table.sequences)
