"""Command `tables`: convert benchmarks of other projects to train.csv, dev.csv and test.csv.

Layouts of a data set, which is a folder:

- `{train,test}/CLASS/*.txt`: one sequence per file (Genomic Benchmarks; Grešová et al. 2023, as its package writes it).
- `{train,test}/CLASS.csv` or `.csv.gz`: intervals with the columns region, start, end and strand, 0-based and half-open
  (Genomic Benchmarks, as its repository stores it). The sequences come from a genome.
- `{train,test}.fna`, `.fasta` or `.fa`, plain or gzip: `>NAME|LABEL` (Nucleotide Transformer; Dalla-Torre et al. 2024).
- `{train,test}.parquet`, or `{train,test}-*.parquet`: the columns sequence and label (Hugging Face's copies). If a
  column task has several values, each task is a data set.
- `{train,dev,test}.tsv`, plain or gzip: the columns sequence and label, where a sequence may be overlapping k-mers with
  spaces between them (DNABERT; Ji et al. 2021). Without test.tsv, dev.tsv is the test set, as in DNABERT's scripts.

The split `dev` or `validation` is used if there is one. Otherwise rows of train are held out.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.genome.fasta_stream import NUCLEOTIDES, Input, fasta_records, letter_fault
from dnabert_rm.genome.intervals import is_position
from dnabert_rm.genome.kmer import reverse_complement
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import atomic_outputs, writable_parent

SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}
"""Table of each split's name."""
_FASTA = re.compile(r"(\w+?)\.(fna|fasta|fa)(\.gz)?$")
_PARQUET = re.compile(r"(\w+?)(-\d+-of-\d+)?\.parquet$")
_TSV = re.compile(r"(\w+?)\.tsv(\.gz)?$")
_INTERVALS = re.compile(r"(.+)\.csv(\.gz)?$")
_INTERVAL_COLUMNS = ("region", "start", "end", "strand")

Row = tuple[str, str]
"""Sequence and label."""
Rows = Iterator[Row]


@dataclass(frozen=True)
class Source:
    """One data set: its name, and for each table a function that reads its rows."""

    name: str
    readers: dict[str, list[Callable[[], Rows]]]


def convert(
    folder: Path, out: Path, *, fasta: Path | None, overwrite: bool, dev_fraction: float, seed: int
) -> Iterator[str]:
    """Write the tables of all data sets in `folder`, and yield a line of text for each of them.

    Args:
        out: Output folder, with a folder for each data set.
        fasta: Genome of interval files.
        overwrite: Replace existing tables.
        dev_fraction: Share of the training rows for dev.csv, if a data set has no such split.
        seed: Seed for choosing them.

    Raises `ConfigError` or `DataError` for a data set that cannot be read as a whole; none of its tables is written.
    """
    writable_parent(out, "--out")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; pass the folder of a benchmark")
    with contextlib.ExitStack() as stack:
        genome = stack.enter_context(Genome(str(fasta))) if fasta else None
        sources = find_sources(folder, genome)
        if not sources:
            raise DataError(
                f"{folder}: no data set found; expected train and test as folders of text or interval files by class, "
                "as FASTA with labels in the headers, as TSV, or as Parquet"
            )
        for source in sources:
            yield _convert_one(source, folder, out / source.name, overwrite, dev_fraction, seed)


def _convert_one(source: Source, root: Path, folder: Path, overwrite: bool, dev_fraction: float, seed: int) -> str:
    """Write the tables of one data set into `folder`, and return a line of text."""
    tables = {name: [row for read in readers for row in read()] for name, readers in source.readers.items()}
    for name in ("train", "test"):
        if not tables.get(name):
            raise DataError(f"{root}: {source.name} has no rows for {name}.csv; complete the download")
    held_out = "dev" not in tables
    if held_out:
        tables["train"], tables["dev"] = hold_out(tables["train"], dev_fraction, seed)
    outputs = [folder / f"{name}.csv" for name in ("train", "dev", "test")]
    for output in outputs:
        if output.exists() and not overwrite:
            raise ConfigError(f"--out {folder}: has {output.name} already; choose another folder or pass --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_outputs(*outputs) as temporary:
        for path, name in zip(temporary, ("train", "dev", "test"), strict=True):
            with open(path, "w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["sequence", "label"])
                writer.writerows(tables[name])
    counts = ", ".join(f"{name}.csv {len(tables[name]):,} rows" for name in ("train", "dev", "test"))
    classes = len({label for _, label in tables["train"]})
    return f"{folder}: {counts}; {classes} labels" + ("; dev held out of train" if held_out else "")


def hold_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the remaining and the held-out rows, in their order. Each label gives the same share of its rows."""
    order = random.permutation(random.key(seed, "tables dev rows"), len(rows))
    by_label = np.array(sorted(order.tolist(), key=lambda row: rows[row][1]))
    # Every 1 / fraction-th row of the sorted list.
    steps = np.floor(np.arange(len(rows) + 1) * fraction + 0.5)
    is_held_out = np.zeros(len(rows), dtype=bool)
    is_held_out[by_label] = np.diff(steps) > 0
    kept = [row for row, held in zip(rows, is_held_out, strict=True) if not held]
    return kept, [row for row, held in zip(rows, is_held_out, strict=True) if held]


# Layouts


def find_sources(root: Path, genome: Genome | None) -> list[Source]:
    """Return the data sets in a folder and its subfolders, sorted by name."""
    found = []
    for folder, names, files in os.walk(root):
        names.sort()
        path = Path(folder)
        name = path.relative_to(root).as_posix() if path != root else path.absolute().name
        readers: dict[str, list[Callable[[], Rows]]] = {}
        for split, file in _files_of_splits(path, files, _FASTA):
            readers.setdefault(split, []).append(partial(_fasta_rows, file))
        for split, file in _tsv_files(path, files):
            readers.setdefault(split, []).append(partial(_tsv_rows, file))
        tables = list(_files_of_splits(path, files, _PARQUET))
        tasks = sorted({task for _, file in tables for task in _tasks(file)})
        for split, file in tables if len(tasks) < 2 else ():
            readers.setdefault(split, []).append(partial(_parquet_rows, file))
        for task in tasks if len(tasks) > 1 else ():
            of_task: dict[str, list[Callable[[], Rows]]] = {}
            for split, file in tables:
                of_task.setdefault(split, []).append(partial(_parquet_rows, file, task))
            found.append(Source(f"{name}/{task}" if path != root else task, of_task))
        for split_folder in [name for name in names if name in SPLITS]:
            if of_split := _class_readers(path / split_folder, genome):
                readers.setdefault(SPLITS[split_folder], []).extend(of_split)
                names.remove(split_folder)
        if readers:
            found.append(Source(name, readers))
    return found


def _files_of_splits(folder: Path, files: Iterable[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    """Yield (table, path) for each file whose name matches the pattern and begins with the name of a split."""
    for file in sorted(files):
        if (match := pattern.match(file)) and match[1] in SPLITS:
            yield SPLITS[match[1]], folder / file


def _tsv_files(folder: Path, files: Iterable[str]) -> list[tuple[str, Path]]:
    """Return (table, path) for each TSV file of a split. If there is none for test, those for dev are for test."""
    found = list(_files_of_splits(folder, files, _TSV))
    if any(split == "test" for split, _ in found):
        return found
    return [("test" if split == "dev" else split, path) for split, path in found]


def _class_readers(folder: Path, genome: Genome | None) -> list[Callable[[], Rows]]:
    """Return functions that read the classes of one split: folders of text files, or files of intervals."""
    readers: list[Callable[[], Rows]] = []
    for item in sorted(folder.iterdir()):
        if item.is_dir() and any(file.suffix == ".txt" for file in item.iterdir()):
            readers.append(partial(_text_rows, item))
        elif match := _INTERVALS.match(item.name):
            readers.append(partial(_interval_rows, item, match[1], genome))
    return readers


def _text_rows(folder: Path) -> Rows:
    for file in sorted(folder.glob("*.txt")):
        yield _checked("".join(file.read_text(encoding="utf-8-sig", errors="replace").split()), str(file)), folder.name


def _fasta_rows(path: Path) -> Rows:
    with Input(path, "a FASTA file") as source:
        for name, blocks in fasta_records(source.text_lines(), source.display_name):
            head, bar, label = name.rpartition("|")
            if not bar or not label:
                raise DataError(f"{path}: record {name} has no label; expected headers like >NAME|LABEL")
            yield _checked(b"".join(blocks).decode("ascii"), f"{path}, record {head}"), label


def _tsv_rows(path: Path) -> Rows:
    for number, row in _table_rows(path, "\t"):
        where = f"{path}, line {number}"
        if row.get("sequence") is None or row.get("label") is None:
            raise DataError(f"{where}: expected the columns sequence and label; fix the header or the row")
        yield _checked(join_kmers(row["sequence"], where), where), row["label"].strip()


def join_kmers(text: str, where: str) -> str:
    """Return the bases of overlapping k-mers with spaces between them. A text without spaces is returned as it is.

    Raises `DataError`, whose message begins with `where`, if a k-mer is not the one before it, shifted by one base.
    """
    kmers = text.split()
    for number, (one, following) in enumerate(itertools.pairwise(kmers), 2):
        if len(one) != len(following) or one[1:] != following[:-1]:
            raise DataError(
                f"{where}: k-mer {number}, {following[:20]}, is not {one[:20]} shifted by one base; "
                "give overlapping k-mers, or bases without spaces"
            )
    return "".join(kmers[:1]) + "".join(kmer[-1] for kmer in kmers[1:])


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("pyarrow is not installed; install dnabert_rm[parquet]") from None
    return parquet


def _tasks(path: Path) -> set[str]:
    """Return the values of a Parquet file's column task, or an empty set if there is no such column of text.

    Raises `DataError` for a value that can't name a folder.
    """
    file = _parquet().ParquetFile(path)
    if "task" not in file.schema_arrow.names:
        return set()
    tasks = file.read(["task"]).column("task").unique().to_pylist()
    if not all(isinstance(task, str) for task in tasks):
        return set()
    if wrong := [task for task in tasks if not re.fullmatch(r"\w[\w.-]*", task)]:
        raise DataError(f"{path}: task {wrong[0]!r} can't name a folder; use letters, digits, _ . and - only")
    return set(tasks)


def _parquet_rows(path: Path, task: str | None = None) -> Rows:
    """Yield the rows of a Parquet file, or only those whose column task has the given value."""
    table = _parquet().read_table(path, filters=[("task", "=", task)] if task else None)
    for column in ("sequence", "label"):
        if column not in table.column_names:
            raise DataError(f"{path}: has no column {column} (found: {', '.join(table.column_names)}); rename one")
    for number, row in enumerate(table.select(["sequence", "label"]).to_pylist(), 1):
        if row["label"] is None:
            raise DataError(f"{path}, row {number}: the label is missing; fill it in or remove the row")
        yield _checked(row["sequence"] or "", f"{path}, row {number}"), str(row["label"])


def _interval_rows(path: Path, label: str, genome: Genome | None) -> Rows:
    if genome is None:
        raise ConfigError(f"--fasta: missing; {path} has intervals, whose bases are in the genome")
    for number, row in _table_rows(path, ","):
        where = f"{path}, line {number}"
        if any(row.get(column) is None for column in _INTERVAL_COLUMNS):
            raise DataError(f"{where}: expected the columns {', '.join(_INTERVAL_COLUMNS)}; fix the row")
        length = genome.length(row["region"])
        if length is None:
            raise DataError(f"{where}: {genome.display_name} has no contig {row['region']}; pass the right genome")
        are_numbers = all(is_position(row[column]) for column in ("start", "end"))
        if not (are_numbers and int(row["start"]) < int(row["end"]) <= length):
            raise DataError(f"{where}: expected 0 <= start < end <= {length}; pass the right genome")
        sequence = genome.fetch(row["region"], int(row["start"]), int(row["end"]))
        yield (reverse_complement(sequence) if row["strand"] == "-" else sequence).decode("ascii"), label


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the columns of each row of a plain or gzip table. A missing column is None."""
    csv.field_size_limit(sys.maxsize)  # the default limit is 131,072 characters per field
    with Input(path, "a table") as source:
        content = io.BytesIO(b"".join(source.lines()))
        text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace", newline="")
        yield from enumerate(csv.DictReader(text, delimiter=delimiter), 2)


def _checked(sequence: str, where: str) -> str:
    letters = sequence.encode("latin-1", errors="replace")
    if not letters:
        raise DataError(f"{where}: the sequence is empty; remove it")
    if wrong := letters.translate(None, NUCLEOTIDES):
        raise DataError(f"{where}: {letter_fault(wrong[0])}")
    return sequence
