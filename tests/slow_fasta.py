"""A slow, independent FASTA reader and k-mer encoder, and random FASTA texts for tests."""

from __future__ import annotations

import gzip
import itertools
import re
from functools import cache
from pathlib import Path

from hypothesis import strategies as st


def slow_records(text: str) -> list[tuple[str, str]]:
    """Read (name, sequence in the file's case) of every record, one line at a time, from the first letter on."""
    records: list[tuple[str, list[str]]] = []
    for line in text.removeprefix("\ufeff").lstrip().split("\n"):
        if line.startswith(">"):
            records.append((line[1:].split()[0], []))
        elif line.strip():
            records[-1][1].append("".join(line.split()))
    return [(name, "".join(lines)) for name, lines in records]


def slow_file(path: Path) -> list[tuple[str, str]]:
    """Read the records of a file, plain or gzip."""
    data = path.read_bytes()
    return slow_records((gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode())


def slow_runs(sequence: str, k: int, min_tokens: int = 1) -> list[tuple[int, int]]:
    """Find the runs of A, C, G, T with at least `min_tokens` k-mers."""
    found = [match.span() for match in re.finditer("[ACGT]+", sequence.upper())]
    return [(start, end) for start, end in found if end - start - k + 1 >= min_tokens]


@cache
def _numbers(k: int) -> dict[str, int]:
    return {"".join(word): 5 + i for i, word in enumerate(itertools.product("ATCG", repeat=k))}


def slow_ids(sequence: str, k: int) -> list[int]:
    """Encode one k-mer at a time from a dictionary; 1 if it contains any other letter."""
    numbers = _numbers(k)
    return [numbers.get(sequence[i : i + k].upper(), 1) for i in range(len(sequence) - k + 1)]


LETTERS = "ACGTacgtNnRYKMSWBDHVX-.*uU"


@st.composite
def fasta_texts(draw: st.DrawFn) -> str:
    """Generate FASTA as found in practice: ragged and blank lines, either line end, blanks, no final line end."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    alphabet = draw(st.sampled_from(["ACGT", "ACGTN", "acgtN", LETTERS]))
    parts = [draw(st.sampled_from(["", "", "\ufeff", end, "\n \n"]))]
    names = draw(st.lists(st.text("abcXYZ019_.|:>-é", min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    for name in names:
        parts.append(f">{name}{draw(st.sampled_from(['', ' a description', chr(9) + 'tab > more']))}{end}")
        width = draw(st.integers(1, 30))
        for _ in range(draw(st.integers(0, 6))):
            size = width if draw(st.booleans()) else draw(st.integers(0, 40))
            line = draw(st.text(alphabet, min_size=size, max_size=size))
            parts.append(line + draw(st.sampled_from(["", "", "", " "])) + end)
    text = "".join(parts)
    return text if draw(st.booleans()) else text.rstrip("\r\n")
