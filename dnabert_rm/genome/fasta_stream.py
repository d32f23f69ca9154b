"""Streams of sequence records from plain files, gzip files or standard input, in bounded memory."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from dnabert_rm.genome.compression import GZIP_MAGIC, GzipStream, check_format
from dnabert_rm.genome.contigs import without_whitespace
from dnabert_rm.genome.fasta_scan import BLOCK_BYTES, header_name
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file

STANDARD_INPUT = "-"
NUCLEOTIDES = b"ACGTRYSWKMBDHVNacgtryswkmbdhvn"
"""IUPAC codes of DNA. U is excluded, since RNA would become unknown tokens and a model would learn nothing."""
_SEQUENCE_LETTERS = NUCLEOTIDES + b"Xx-.*"
_HEAD_BYTES = 512


class Input:
    """A plain or gzip file that is read once from its start. The path "-" means standard input.

    `position` and `size` are in bytes of the (compressed) file. `size` is None for a pipe or a device.

    Args:
        content: The expected content for messages, such as "a FASTA file".

    Raises `DataError` if the file can't be opened, or if it is compressed but not gzip.
    """

    def __init__(self, path: str | os.PathLike[str], content: str):
        self.display_name = "standard input" if os.fspath(path) == STANDARD_INPUT else str(path)
        if os.fspath(path) == STANDARD_INPUT:
            self._raw: Any = sys.stdin.buffer
        else:
            check_readable_file(path, content)
            try:
                self._raw = open(path, "rb", buffering=BLOCK_BYTES)  # noqa: SIM115 (closed in __exit__)
            except OSError as error:  # a socket, for example
                raise DataError(f"{path}: cannot be opened ({error.strerror}); pass a regular file or a pipe") from None
        self.size = os.stat(path).st_size if os.path.isfile(path) else None
        head = self._raw.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        self.is_compressed = head.startswith(GZIP_MAGIC)
        if not self.is_compressed:
            check_format(head, self.display_name)
        decompressed = GzipStream(self._raw, self.display_name) if self.is_compressed else None
        self._stream = io.BufferedReader(decompressed, BLOCK_BYTES) if decompressed else self._raw

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    @property
    def position(self) -> int:
        """Number of bytes read so far from the (compressed) file, or 0 if unknown."""
        with contextlib.suppress(OSError):
            return self._raw.tell() if self.size is not None else 0
        return 0

    def lines(self) -> Iterator[bytes]:
        """Yield lines with their line ends. Lines longer than `BLOCK_BYTES` are yielded in parts.

        Raises `DataError` if the gzip data are damaged or contain another compressed file.
        """
        is_first = True
        while line := self._stream.readline(BLOCK_BYTES):
            if is_first:
                check_format(line, self.display_name)
                is_first = False
            yield line

    def text_lines(self) -> Iterator[bytes]:
        """Yield the lines like `lines`, without a byte order mark.

        Raises `DataError` if the first line has a carriage return inside: then all lines would be read as one.
        """
        for number, line in enumerate(self.lines()):
            if number:
                yield line
                continue
            text = line.removeprefix(codecs.BOM_UTF8)
            if b"\r" in text.rstrip(b"\r\n"):
                raise DataError(
                    f"{self.display_name}: has carriage returns inside line 1 (old Macintosh line ends?); "
                    "convert line ends to \\n"
                )
            yield text


def fasta_records(
    lines: Iterable[bytes], display_name: str, first_line: int = 1
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each record's name and an iterator over blocks of its letters.

    A block has about `BLOCK_BYTES` letters, in upper or lower case as in the file. Requesting the next record skips
    the unread blocks of the current one.

    Args:
        lines: Lines of the file; the first one must be a header.
        display_name: The file's name in messages.
        first_line: The number that error messages give to the first of `lines`.

    If the file is not FASTA of DNA, raises `DataError` with the line number.
    """
    reader = _RecordReader(lines, display_name, first_line)
    while reader.header is not None:
        name = reader.take_name()
        blocks = reader.blocks()
        yield name, blocks
        for _ in blocks:  # skip what the caller has not read
            pass


class _RecordReader:
    """Reader of FASTA lines that stops at each header and counts lines."""

    def __init__(self, lines: Iterable[bytes], display_name: str, first_line: int):
        self._lines = iter(lines)
        self._display_name = display_name
        self._line = first_line
        self.header: bytes | None = next(self._lines, None)

    def take_name(self) -> str:
        assert self.header is not None
        try:
            name = header_name(self.header)
        except ValueError as error:
            raise DataError(f"{self._display_name}, line {self._line}: {error}") from None
        self._line += 1
        self.header = None
        return name

    def blocks(self) -> Iterator[bytes]:
        """Yield blocks of letters up to the next header, and store that header in `header`."""
        block: list[bytes] = []
        size = 0
        at_line_start = True
        for line in self._lines:
            if at_line_start and line.startswith(b">"):
                self.header = line
                break
            block.append(line)
            size += len(line)
            at_line_start = line.endswith(b"\n")
            if size >= BLOCK_BYTES:
                yield self._letters(block)
                block = []
                size = 0
        if block:
            yield self._letters(block)

    def _letters(self, lines: list[bytes]) -> bytes:
        letters = without_whitespace(b"".join(lines))
        if letters.translate(None, _SEQUENCE_LETTERS):
            self._raise_illegal_letter(lines)
        self._line += sum(line.endswith(b"\n") for line in lines)
        return letters

    def _raise_illegal_letter(self, lines: list[bytes]) -> None:
        numbers = itertools.accumulate((line.endswith(b"\n") for line in lines), initial=self._line)
        for number, line in zip(numbers, lines, strict=False):
            if illegal := without_whitespace(line).translate(None, _SEQUENCE_LETTERS):
                raise DataError(f"{self._display_name}, line {number}: {letter_fault(illegal[0])}")


def letter_fault(byte: int) -> str:
    """Return the message for a letter that is not a nucleotide."""
    letter = chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
    return f"{letter!r} is not a nucleotide; {letter_advice(letter)}"


def letter_advice(letter: str) -> str:
    """Return what to do about a letter that is not a nucleotide."""
    if letter in "Uu":
        return "write T for U"
    if letter == " ":
        return "remove the spaces; `python -m data_prep tables` joins DNABERT's k-mers"
    return "use A, C, G, T or IUPAC codes for ambiguous bases"
