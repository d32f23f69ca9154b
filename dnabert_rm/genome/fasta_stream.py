"""Sequence files as streams: plain, gzip or standard input, one record after another, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from dnabert_rm.genome.contigs import without_whitespace
from dnabert_rm.genome.fasta_scan import BLOCK_BYTES, header_name
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file

STANDARD_INPUT = "-"
NUCLEOTIDES = b"ACGTRYSWKMBDHVNacgtryswkmbdhvn"
"""IUPAC's codes of DNA. U is left out: RNA read as unknown tokens would tell a model nothing."""
_LETTERS = NUCLEOTIDES + b"Xx-.*"
_GZIP_MAGIC = b"\x1f\x8b"


class Input:
    """A file, or standard input for "-", gzip or not, read once from its start.

    `position` and `size` are in bytes as the file lies there; `size` is None where it can't be known.
    """

    def __init__(self, path: str | os.PathLike[str], what: str):
        """`what` says in messages what the file should hold; `DataError` where it can't be opened."""
        self.shown = "standard input" if os.fspath(path) == STANDARD_INPUT else str(path)
        if os.fspath(path) == STANDARD_INPUT:
            self._raw: Any = sys.stdin.buffer
        else:
            check_readable_file(path, what)
            self._raw = open(path, "rb", buffering=BLOCK_BYTES)  # noqa: SIM115 (closed in __exit__)
        self.size = os.stat(path).st_size if os.path.isfile(path) else None
        self.is_packed = self._raw.peek(2)[:2] == _GZIP_MAGIC
        unpacked = gzip.GzipFile(fileobj=self._raw) if self.is_packed else None
        self._stream = io.BufferedReader(unpacked, BLOCK_BYTES) if unpacked else self._raw

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    @property
    def position(self) -> int:
        """Bytes read so far, of the compressed file where it is compressed; 0 where that can't be known."""
        with contextlib.suppress(OSError):
            return self._raw.tell() if self.size is not None else 0
        return 0

    def lines(self) -> Iterator[bytes]:
        """Lines with their ends; one longer than `BLOCK_BYTES` comes in parts. `DataError` for damaged gzip data."""
        try:
            while line := self._stream.readline(BLOCK_BYTES):
                yield line
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise DataError(
                f"{self.shown}: the gzip data are damaged or end too early; copy or download the file again"
            ) from None


def fasta_records(lines: Iterable[bytes], shown: str, first_line: int = 1) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The name of each record and its letters in blocks of at most about `BLOCK_BYTES`, as they stand in the file.

    A record's blocks must be used before the next record is asked for. `DataError` names the line of what is not
    FASTA of DNA; the first of `lines` is number `first_line` and must be a header.
    """
    reader = _Reader(lines, shown, first_line)
    while reader.header is not None:
        name = reader.take_name()
        blocks = reader.blocks()
        yield name, blocks
        for _ in blocks:  # what the user has not read
            pass


class _Reader:
    """Lines of a FASTA file, counted; stops at headers."""

    def __init__(self, lines: Iterable[bytes], shown: str, first_line: int):
        self._lines, self._shown, self._line = iter(lines), shown, first_line
        self.header: bytes | None = next(self._lines, None)

    def take_name(self) -> str:
        assert self.header is not None
        try:
            name = header_name(self.header)
        except ValueError as fault:
            raise DataError(f"{self._shown}, line {self._line}: {fault}") from None
        self._line, self.header = self._line + 1, None
        return name

    def blocks(self) -> Iterator[bytes]:
        """Letters up to the next header, which is kept."""
        held: list[bytes] = []
        size, at_line_start = 0, True
        for line in self._lines:
            if at_line_start and line.startswith(b">"):
                self.header = line
                break
            held.append(line)
            size, at_line_start = size + len(line), line.endswith(b"\n")
            if size >= BLOCK_BYTES:
                yield self._letters(held)
                held, size = [], 0
        if held:
            yield self._letters(held)

    def _letters(self, lines: list[bytes]) -> bytes:
        letters = without_whitespace(b"".join(lines))
        if letters.translate(None, _LETTERS):
            self._refuse(lines)
        self._line += sum(line.endswith(b"\n") for line in lines)
        return letters

    def _refuse(self, lines: list[bytes]) -> None:
        ends = itertools.accumulate((line.endswith(b"\n") for line in lines), initial=self._line)
        for number, line in zip(ends, lines, strict=False):
            if wrong := without_whitespace(line).translate(None, _LETTERS):
                raise DataError(f"{self._shown}, line {number}: {letter_fault(wrong[0])}")


def letter_fault(byte: int) -> str:
    """What is wrong with a letter that is no nucleotide's."""
    letter = chr(byte) if 32 < byte < 127 else f"\\x{byte:02x}"
    mend = "write T for U" if letter in "Uu" else "A, C, G, T and IUPAC's codes for ambiguous bases are known"
    return f"{letter!r} is not a nucleotide; {mend}"
