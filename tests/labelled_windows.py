"""Genomes and intervals for tests of `data_prep labels`, and the tables that it makes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.labels.make_labels import make_labels
from data_prep.labels.options import LabelsSettings

COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}
Row = dict[str, str]
Bed = tuple[str, int, int, str]
"""Contig, start, end, strand."""


def write_genome(path: Path, contigs: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return path


def write_bed(path: Path, rows: Sequence[Bed]) -> Path:
    path.write_text("".join(f"{name}\t{start}\t{end}\tx\t0\t{strand}\n" for name, start, end, strand in rows))
    return path


def run(folder: Path, *files: str | Path, **flags: Any) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Make labels from `files` and folder/genome.fa. Return the report and the rows of each table."""
    words = {"fasta": str(folder / "genome.fa"), "out": folder / "out", "overwrite": True, **flags}
    report = make_labels(LabelsSettings(files=tuple(map(str, files)), **words))
    tables = {}
    for split in ("train", "dev", "test"):
        with open(folder / "out" / f"{split}.csv", newline="") as stream:
            tables[split] = list(csv.DictReader(stream))
    assert json.loads((folder / "out" / "labels.json").read_text()) == json.loads(json.dumps(report))
    return report, tables


def rows_of(tables: dict[str, list[Row]]) -> list[Row]:
    return [row for rows in tables.values() for row in rows]


def slow_sequence(text: str, start: int, end: int, strand: str) -> str:
    letters = text[start:end].upper()
    return "".join(COMPLEMENT[letter] for letter in reversed(letters)) if strand == "-" else letters


def random_dna(seed: int, size: int, letters: str = "ACGTacgt") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), size).tolist())


def genome_with_repeats(seed: int, size: int) -> str:
    """Return DNA whose G+C content and case change every 500 bases."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(size // 500):
        gc = rng.uniform(0.2, 0.8)
        part = "".join(rng.choice(list("ACGT"), 500, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]).tolist())
        parts.append(part.lower() if rng.uniform() < 0.3 else part)
    return "".join(parts)


def write_peaks(folder: Path) -> list[Bed]:
    """Write a genome of three contigs with a run of N, and 120 peaks. Contig c is dev, b is test."""
    texts = {name: genome_with_repeats(seed, 60_000) for seed, name in enumerate("abc")}
    texts["a"] = texts["a"][:30_000] + "N" * 500 + texts["a"][30_500:]
    write_genome(folder / "genome.fa", texts)
    rng = np.random.default_rng(8)
    rows = [("abc"[i % 3], int(s), int(s) + 150, "+-."[i % 3]) for i, s in enumerate(rng.integers(200, 59_000, 120))]
    write_bed(folder / "peaks.bed", rows)
    return rows
