"""Where the bases of a FASTA are: one parallel pass that finds records, gaps and byte offsets.

A file is scanned in ranges of bytes, each on its own, and the ranges' pieces are joined. What
comes out is small (names, lengths, stretches that are not A, C, G, T, and an anchor every
quarter of a megabyte), so that any stretch of any contig can be read later without an index
file, whatever the line lengths. Offsets are in bytes of the uncompressed file, the rest in bases.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import AMBIGUOUS, base_codes
from dnabert_rm.utils.errors import DataError

BLOCK_BYTES = 1 << 18
"""Read at a time: block and base codes stay in a core's cache."""
RANGE_BYTES = 1 << 25
"""One task of the scan."""
MAX_HEADER_BYTES = 1 << 16
WHITESPACE = b" \t\r\n"
_BASES_AND_WHITESPACE = (b"ACGTacgt" + WHITESPACE, b"ACGTUacgtu" + WHITESPACE)
_OTHER_LETTER, _URACIL, _ILLEGAL = 5, 6, 7
_BOM = b"\xef\xbb\xbf"


@lru_cache
def scan_table(rna: bool) -> bytes:
    """Byte → base code 0 … 3, N or gap 4, other letter 5, U that is not read as T 6, illegal 7."""
    table = np.full(256, _ILLEGAL, dtype=np.uint8)
    letters = np.array([byte for byte in range(128) if chr(byte).isalpha()])
    table[letters] = _OTHER_LETTER
    known = base_codes(bytes(letters.tolist()))
    table[letters[known != AMBIGUOUS]] = known[known != AMBIGUOUS]
    table[list(b"Nn-.")] = AMBIGUOUS
    table[ord("*")] = _OTHER_LETTER
    table[list(b"Uu")] = table[ord("T")] if rna else _URACIL
    return table.tobytes()


@dataclass
class Piece:
    """A record, or the part of one that lies in the scanned range.

    `name` is None where the record began before the range. `gaps` (n, 2) are stretches without
    A, C, G, T and `anchors` (m, 2) pairs of byte offset and base, both counted from the piece's start.
    """

    name: str | None
    offset: int
    length: int = 0
    uracils: int = 0
    other_letters: int = 0
    gaps: list[NDArray[np.int64]] = field(default_factory=list)
    anchors: list[tuple[int, int]] = field(default_factory=list)

    def add(self, raw: bytes, offset: int, rna: bool) -> None:
        """Count the sequence bytes `raw`, which lie at `offset`; ValueError where one is no letter."""
        self.anchors.append((offset, self.length))
        if not raw.translate(None, _BASES_AND_WHITESPACE[rna]):
            # Nearly every block; a third of the time of the general way. Letters lie above all whitespace.
            self.length += int(np.count_nonzero(np.frombuffer(raw, np.uint8) > max(WHITESPACE)))
            return
        codes = np.frombuffer(raw.translate(scan_table(rna), WHITESPACE), dtype=np.uint8)
        gap = codes >= AMBIGUOUS
        if gap.any():
            kinds = np.bincount(codes[gap], minlength=_ILLEGAL + 1)
            if kinds[_ILLEGAL]:
                raise ValueError
            self.uracils += int(kinds[_URACIL])
            self.other_letters += int(kinds[_OTHER_LETTER])
            self.gaps.append(true_runs(gap) + self.length)
        self.length += len(codes)


def true_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Half-open stretches where `mask` (N,) is true, shape (runs, 2)."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    ends = [np.zeros(int(mask[0]), dtype=np.int64), edges, np.full(int(mask[-1]), len(mask))]
    return np.concatenate(ends).reshape(-1, 2).astype(np.int64)


def scan_range(path: str, shown: str, start: int, stop: int, rna: bool) -> list[Piece]:
    """Scan the bytes start … stop - 1 of an uncompressed FASTA; a header belongs to where it begins.

    `shown` names the file in messages. Raises `DataError` with the line of whatever is not FASTA.
    """
    pieces: list[Piece] = []
    with open(path, "rb") as stream:
        position, at_line_start = _entry(stream, shown, start)
        if start > 0 and position < stop:
            pieces.append(Piece(None, position))
        while position < stop:
            stream.seek(position)
            block = stream.read(min(BLOCK_BYTES, stop - position))
            if not block:
                raise DataError(f"{shown}: became shorter while it was read; start again when it is complete")
            position, at_line_start = _scan_block(stream, shown, block, position, at_line_start, pieces, rna)
    return pieces


def _scan_block(
    stream: BinaryIO, shown: str, block: bytes, position: int, at_line_start: bool, pieces: list[Piece], rna: bool
) -> tuple[int, bool]:
    """Scan one block; returns where the next begins, and whether that is at the start of a line."""
    cursor = 0
    header = 0 if at_line_start and block.startswith(b">") else _next_header(block, 1)
    while True:
        if header > cursor:
            try:
                pieces[-1].add(block[cursor:header], position + cursor, rna)
            except ValueError:
                _refuse_letter(stream, shown, block[cursor:header], position + cursor)
        if header == len(block):
            return position + header, block.endswith(b"\n")
        stream.seek(position + header)
        end = block.find(b"\n", header) + 1
        line = block[header:end] if end else stream.readline(MAX_HEADER_BYTES + 1)
        pieces.append(Piece(_record_name(stream, shown, line, position + header), position + header))
        if not end:
            return position + header + len(line), True
        cursor = end
        header = _next_header(block, cursor)


def _next_header(block: bytes, start: int) -> int:
    """Where, from `start` (not 0) on, a line of the block begins with `>`; its length where none does."""
    at = block.find(b">", start)
    while at > 0 and block[at - 1 : at] != b"\n":
        at = block.find(b">", at + 1)
    return at if at > 0 else len(block)


def _entry(stream: BinaryIO, shown: str, start: int) -> tuple[int, bool]:
    """The first byte at or after `start` that no earlier range takes, and whether a line starts there."""
    if start == 0:
        return first_header(stream.read(BLOCK_BYTES), shown), True
    begin = max(0, start - MAX_HEADER_BYTES)
    stream.seek(begin)
    before = stream.read(start - begin)
    line = before[before.rfind(b"\n") + 1 :].removeprefix(_BOM)
    if line.startswith(b">"):
        # Inside a header, which belongs to the range before.
        return start + len(stream.readline(MAX_HEADER_BYTES)), True
    return start, not line


def first_header(head: bytes, shown: str) -> int:
    """Offset of the first `>` in a file's first bytes; blank lines and a byte order mark may stand before it.

    Raises `DataError` where the file does not begin as FASTA does; `shown` names it.
    """
    body = head.removeprefix(_BOM).lstrip(WHITESPACE)
    if not body:
        what = "is empty" if not head else "holds no record"
        raise DataError(f"{shown}: {what}; a FASTA file with lines '>name' and sequence is expected")
    if body.startswith(b">"):
        return len(head) - len(body)
    line = 1 + head[: len(head) - len(body)].count(b"\n")
    if body.startswith(b"@"):
        raise DataError(f"{shown}, line {line}: starts with '@' like FASTQ; convert it to FASTA first")
    shown_start = body[:20].split(b"\n")[0].decode("ascii", "backslashreplace")
    raise DataError(f"{shown}, line {line}: not FASTA: '>name' expected, but it starts with {shown_start!r}")


def _record_name(stream: BinaryIO, shown: str, line: bytes, offset: int) -> str:
    """The name in a header line; `DataError` where there is none that can serve as a name."""
    try:
        return header_name(line)
    except ValueError as fault:
        raise DataError(f"{shown}, line {line_number(stream, offset)}: {fault}") from None


def header_name(line: bytes) -> str:
    """The first word of a header line; ValueError says what is wrong with the line."""
    if len(line) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of more than {MAX_HEADER_BYTES} bytes; shorten it")
    if b"\r" in line.rstrip(b"\r\n"):
        raise ValueError("a carriage return inside a header (old Macintosh line ends?); convert line ends to \\n")
    name = line[1:].rstrip(b"\r\n").decode("utf-8", "backslashreplace").replace("\t", " ").partition(" ")[0]
    if not name or not name.isprintable():
        raise ValueError("a header without a name; write '>name' with no blank after '>'")
    return name


def _refuse_letter(stream: BinaryIO, shown: str, raw: bytes, offset: int) -> None:
    """Raise the `DataError` for the first byte in `raw` that can't stand in a sequence."""
    at = next(i for i, byte in enumerate(raw) if scan_table(False)[byte] == _ILLEGAL and byte not in WHITESPACE)
    byte = chr(raw[at]) if 32 < raw[at] < 127 else f"\\x{raw[at]:02x}"
    line = line_number(stream, offset + at)
    raise DataError(f"{shown}, line {line}: '{byte}' is no letter of a sequence; is this a FASTA of DNA?")


def line_number(stream: BinaryIO, offset: int) -> int:
    """The 1-based line that holds the byte at `offset`."""
    stream.seek(0)
    line, left = 1, offset
    while left > 0 and (block := stream.read(min(1 << 20, left))):
        line += block.count(b"\n")
        left -= len(block)
    return line


def scan_ranges(size: int, range_bytes: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Cut a file of `size` bytes into the ranges of `scan_range`."""
    return [(start, min(size, start + range_bytes)) for start in range(0, max(1, size), range_bytes)]


def file_size(path: str) -> int:
    """Bytes of a file."""
    return os.stat(path).st_size
