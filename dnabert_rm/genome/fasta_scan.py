"""Scan of a FASTA: one parallel pass that finds records, gaps and byte offsets.

Workers scan byte ranges of a file independently, and the results are joined. Only names, lengths, gaps (ranges without
A, C, G, T) and anchors are kept. An anchor is a byte offset and the position of the base at this offset. There is an
anchor every quarter of a megabyte. With anchors, any region can be read without an index file, even if line lengths
vary.

Offsets are in bytes of the uncompressed file; all other coordinates are in bases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.compression import check_format
from dnabert_rm.genome.kmer import AMBIGUOUS, base_codes
from dnabert_rm.utils.errors import DataError

BLOCK_BYTES = 1 << 18
"""Number of bytes per read. A block and its base codes fit in the cache of a core."""
RANGE_BYTES = 1 << 25
"""Number of bytes in one range of the parallel scan."""
MAX_HEADER_BYTES = 1 << 16
WHITESPACE = b" \t\r\n"
_BASES_AND_WHITESPACE = (b"ACGTacgt" + WHITESPACE, b"ACGTUacgtu" + WHITESPACE)
_OTHER_LETTER = 5
_URACIL = 6
_ILLEGAL = 7
_ALIGNMENT_GAP = 8
_BOM = b"\xef\xbb\xbf"


@lru_cache
def scan_table(rna: bool) -> bytes:
    """Return a translation table from bytes to codes.

    Bases are 0 … 3, N is 4, other letters 5, illegal bytes 7 and the gap symbols of alignments 8. U has
    the code of T if `rna` is true, otherwise 6.
    """
    table = np.full(256, _ILLEGAL, dtype=np.uint8)
    letters = np.array([byte for byte in range(128) if chr(byte).isalpha()])
    table[letters] = _OTHER_LETTER
    known = base_codes(bytes(letters.tolist()))
    table[letters[known != AMBIGUOUS]] = known[known != AMBIGUOUS]
    table[list(b"Nn")] = AMBIGUOUS
    table[list(b"-.")] = _ALIGNMENT_GAP
    table[ord("*")] = _OTHER_LETTER
    table[list(b"Uu")] = table[ord("T")] if rna else _URACIL
    return table.tobytes()


@dataclass(slots=True)
class RecordPart:
    """A FASTA record, or the part of a record that is inside the scanned byte range.

    `name` is None if the record began before the range. `gaps` are arrays (n, 2) of half-open ranges without A, C, G,
    T. `anchors` are pairs (byte offset, position). Positions are counted from the piece's start.
    """

    name: str | None
    offset: int
    length: int = 0
    uracils: int = 0
    other_letters: int = 0
    """Letters that are not A, C, G, T, U or N, such as IUPAC codes and amino acids."""
    alignment_gaps: int = 0
    gaps: list[NDArray[np.int64]] = field(default_factory=list)
    anchors: list[tuple[int, int]] = field(default_factory=list)

    def add(self, raw: bytes, offset: int, rna: bool) -> None:
        """Add the sequence bytes `raw` from byte `offset` of the file. Raise ValueError for an illegal byte."""
        self.anchors.append((offset, self.length))
        if not raw.translate(None, _BASES_AND_WHITESPACE[rna]):
            # Fast path for nearly every block, three times as fast. Every letter is a larger byte than whitespace.
            self.length += int(np.count_nonzero(np.frombuffer(raw, np.uint8) > max(WHITESPACE)))
            return
        codes = np.frombuffer(raw.translate(scan_table(rna), WHITESPACE), dtype=np.uint8)
        gap = codes >= AMBIGUOUS
        if gap.any():
            kinds = np.bincount(codes[gap], minlength=_ALIGNMENT_GAP + 1)
            if kinds[_ILLEGAL]:
                raise ValueError
            self.uracils += int(kinds[_URACIL])
            self.other_letters += int(kinds[_OTHER_LETTER])
            self.alignment_gaps += int(kinds[_ALIGNMENT_GAP])
            self.gaps.append(true_runs(gap) + self.length)
        self.length += len(codes)


def true_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the half-open ranges where `mask` (N,) is true, shape (runs, 2)."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    ends = [np.zeros(int(mask[0]), dtype=np.int64), edges, np.full(int(mask[-1]), len(mask))]
    return np.concatenate(ends).reshape(-1, 2).astype(np.int64)


def scan_range(path: str, display_name: str, start: int, stop: int, rna: bool) -> list[RecordPart]:
    """Return the records, or parts of records, in bytes start … stop - 1 of an uncompressed FASTA.

    A header belongs to the range in which it begins. `display_name` is the file's name in messages. If the file is not
    FASTA, raises `DataError` with the line number.
    """
    pieces: list[RecordPart] = []
    with open(path, "rb") as stream:
        position, at_line_start = _find_start(stream, display_name, start)
        if start > 0 and position < stop:
            pieces.append(RecordPart(None, position))
        while position < stop:
            stream.seek(position)
            block = stream.read(min(BLOCK_BYTES, stop - position))
            if not block:
                raise DataError(f"{display_name}: became shorter while it was read; rerun once it is complete")
            position, at_line_start = _scan_block(stream, display_name, block, position, at_line_start, pieces, rna)
    return pieces


def _scan_block(
    stream: BinaryIO,
    display_name: str,
    block: bytes,
    position: int,
    at_line_start: bool,
    pieces: list[RecordPart],
    rna: bool,
) -> tuple[int, bool]:
    """Scan one block of a FASTA, and add its sequence and new records to `pieces`.

    Return the offset of the next block, and whether the next block begins at the start of a line.
    """
    cursor = 0
    header = 0 if at_line_start and block.startswith(b">") else _next_header(block, 1)
    while True:
        if header > cursor:
            try:
                pieces[-1].add(block[cursor:header], position + cursor, rna)
            except ValueError:
                _raise_illegal_letter(stream, display_name, block[cursor:header], position + cursor)
        if header == len(block):
            return position + header, block.endswith(b"\n")
        stream.seek(position + header)
        end = block.find(b"\n", header) + 1
        line = block[header:end] if end else stream.readline(MAX_HEADER_BYTES + 1)
        pieces.append(RecordPart(_record_name(stream, display_name, line, position + header), position + header))
        if not end:
            return position + header + len(line), True
        cursor = end
        header = _next_header(block, cursor)


def _next_header(block: bytes, start: int) -> int:
    """Return the offset of the first header at or after `start`, or the block's length if there is none.

    `start` must be at least 1.
    """
    offset = block.find(b">", start)
    while offset > 0 and block[offset - 1 : offset] != b"\n":
        offset = block.find(b">", offset + 1)
    return offset if offset > 0 else len(block)


def _find_start(stream: BinaryIO, display_name: str, start: int) -> tuple[int, bool]:
    """Return the offset of the first byte to scan, and whether that byte starts a line.

    Scanning begins at `start`, or after the header if `start` is inside a header. If `start` is 0, scanning begins at
    the file's first header.
    """
    if start == 0:
        return first_header(stream.read(BLOCK_BYTES), display_name), True
    begin = max(0, start - MAX_HEADER_BYTES)
    stream.seek(begin)
    before = stream.read(start - begin)
    line = before[before.rfind(b"\n") + 1 :].removeprefix(_BOM)
    if line.startswith(b">"):
        # `start` is inside a header, which belongs to the previous range.
        return start + len(stream.readline(MAX_HEADER_BYTES)), True
    return start, not line


def first_header(head: bytes, display_name: str) -> int:
    """Return the offset of the first header in `head`, the first bytes of a file.

    Only blank lines and a byte order mark may precede the header. Anything else raises `DataError`.
    """
    check_format(head, display_name)
    body = head.removeprefix(_BOM).lstrip(WHITESPACE)
    if not body:
        problem = "is empty" if not head else "holds no record"
        raise DataError(f"{display_name}: {problem}; pass a FASTA file, with '>name' lines followed by sequence")
    if body.startswith(b">"):
        return len(head) - len(body)
    line = 1 + head[: len(head) - len(body)].count(b"\n")
    if body.startswith(b"@"):
        raise DataError(f"{display_name}, line {line}: starts with '@' like FASTQ; convert it to FASTA first")
    first_bytes = body[:20].split(b"\n")[0].decode("ascii", "backslashreplace")
    raise DataError(f"{display_name}, line {line}: not FASTA: expected '>name', found {first_bytes!r}")


def _record_name(stream: BinaryIO, display_name: str, line: bytes, offset: int) -> str:
    """Return the record name in a header line. Raise `DataError` if the line has no valid name."""
    try:
        return header_name(line)
    except ValueError as error:
        raise DataError(f"{display_name}, line {line_number(stream, offset)}: {error}") from None


def header_name(line: bytes) -> str:
    """Return the first word of a header line. Raise ValueError with the reason if the header is not valid."""
    if len(line) > MAX_HEADER_BYTES:
        raise ValueError(f"the header has more than {MAX_HEADER_BYTES} bytes; shorten it")
    if b"\r" in line.rstrip(b"\r\n"):
        raise ValueError("the header contains a carriage return (old Macintosh line ends?); convert line ends to \\n")
    name = line[1:].rstrip(b"\r\n").decode("utf-8", "backslashreplace").replace("\t", " ").partition(" ")[0]
    if not name:
        raise ValueError("the header has no name; write '>name' with no space after '>'")
    if not name.isprintable():
        character = next(letter for letter in name if not letter.isprintable())
        kind = "space" if character.isspace() else "control character"
        raise ValueError(
            f"the name in the header contains the {kind} U+{ord(character):04X}; replace it with a space, or remove it"
        )
    return name


def _raise_illegal_letter(stream: BinaryIO, display_name: str, raw: bytes, offset: int) -> None:
    """Raise `DataError` for the first byte in `raw` that is illegal in a sequence."""
    index = next(i for i, byte in enumerate(raw) if scan_table(False)[byte] == _ILLEGAL and byte not in WHITESPACE)
    byte = raw[index]
    letter = chr(byte) if 32 < byte < 127 else f"\\x{byte:02x}"
    line = line_number(stream, offset + index)
    raise DataError(f"{display_name}, line {line}: '{letter}' is not a nucleotide code; pass a FASTA of DNA")


def line_number(stream: BinaryIO, offset: int) -> int:
    """Return the 1-based number of the line that contains the byte at `offset`."""
    stream.seek(0)
    line = 1
    remaining = offset
    while remaining > 0 and (block := stream.read(min(1 << 20, remaining))):
        line += block.count(b"\n")
        remaining -= len(block)
    return line


def scan_ranges(size: int, range_bytes: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Split a file of `size` bytes into byte ranges for `scan_range`. Return (start, stop) of each range."""
    return [(start, min(size, start + range_bytes)) for start in range(0, max(1, size), range_bytes)]
