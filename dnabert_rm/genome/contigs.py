"""Contigs of a scanned FASTA file: join the scanned parts of each contig, and read bases by coordinate."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_scan import BLOCK_BYTES, WHITESPACE, RecordPart, line_number
from dnabert_rm.utils.errors import DataError

_NO_LETTERS = np.empty(0, np.uint8)
_NO_ROWS = np.empty((0, 2), np.int64)
"""Shared by all contigs without gaps, to save 100 bytes per contig."""


@dataclass(frozen=True, slots=True)
class Contig:
    """One FASTA record.

    `gaps` (n, 2) are half-open ranges of positions without A, C, G, T. Each row of `anchors` (m, 2) is a byte offset in
    the file and the position of the base at this offset. Reading can start at any anchor.
    """

    genome: str
    name: str
    source: int
    length: int
    gaps: NDArray[np.int64]
    anchors: NDArray[np.int64]

    def anchors_of(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the last row of `anchors` at or before each position in `starts` (n,), shape (n, 2)."""
        return self.anchors[np.searchsorted(self.anchors[:, 1], starts, "right") - 1]


def join_record_parts(genome: str, source: int, pieces: list[RecordPart]) -> list[Contig]:
    """Join the scanned parts of records into the contigs of one file. `pieces` must be in file order.

    The list is emptied, so that millions of pieces and contigs are not in memory at the same time.
    """
    pieces.reverse()
    contigs = []
    while pieces:
        record = [pieces.pop()]
        while pieces and pieces[-1].name is None:
            record.append(pieces.pop())
        contigs.append(_join_record(genome, source, record))
    return contigs


def _join_record(genome: str, source: int, pieces: list[RecordPart]) -> Contig:
    """Join the scanned parts of one contig. Shift the positions in each part to count from the contig's start."""
    start = 0
    gaps: list[NDArray[np.int64]] = []
    anchors: list[tuple[int, int]] = []
    for piece in pieces:
        gaps += [gap + start for gap in piece.gaps]
        anchors += [(offset, position + start) for offset, position in piece.anchors]
        start += piece.length
    name = pieces[0].name
    assert name is not None
    merged = _merge_adjacent(np.concatenate(gaps)) if gaps else _NO_ROWS
    return Contig(genome, name, source, start, merged, np.array(anchors, dtype=np.int64) if anchors else _NO_ROWS)


def _merge_adjacent(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge gaps (n, 2) that touch. A gap across a block boundary of the scan is found as two touching gaps."""
    if len(gaps) == 1:
        return gaps
    separate = gaps[1:, 0] > gaps[:-1, 1]
    starts = gaps[np.concatenate([[True], separate])[: len(gaps)], 0]
    ends = gaps[np.concatenate([separate, [True]])[-len(gaps) :] if len(gaps) else slice(0), 1]
    return np.stack([starts, ends], axis=1)


def check_scan(
    display_name: str, uncompressed: str, pieces: list[RecordPart], rna_advice: str = "convert U to T first"
) -> None:
    """Raise `DataError` if a file holds proteins or RNA, or repeats a record name.

    Args:
        display_name: The file's name in messages.
        uncompressed: Path of the scanned file.
        pieces: All records of the file, in one or more scanned parts each.
        rna_advice: Last words of the message about RNA, which tell the user what to change.
    """
    letters = sum(piece.length - piece.alignment_gaps for piece in pieces)
    if 2 * sum(piece.other_letters for piece in pieces) > letters:
        raise DataError(
            f"{display_name}: more than half of its letters are not A, C, G, T, U or N; use DNA, not protein"
        )
    uracils = sum(piece.uracils for piece in pieces)
    if uracils and uracils > _count_thymines(uncompressed):
        raise DataError(f"{display_name}: has more U than T, so it holds RNA; {rna_advice}")
    seen: set[str] = set()
    for piece in pieces:
        if piece.name is None:
            continue
        if piece.name in seen:
            with open(uncompressed, "rb") as stream:
                line = line_number(stream, piece.offset)
            raise DataError(f"{display_name}, line {line}: a second record is named {piece.name!r}; rename one of them")
        seen.add(piece.name)


def _count_thymines(path: str) -> int:
    """Return the number of T and t in the sequences of an uncompressed FASTA, in bounded memory."""
    count = 0
    at_line_start = True
    in_header = False
    with open(path, "rb") as stream:
        if stream.read(len(BOM_UTF8)) != BOM_UTF8:
            stream.seek(0)
        while part := stream.readline(BLOCK_BYTES):
            in_header = part.startswith(b">") if at_line_start else in_header
            at_line_start = part.endswith(b"\n")
            if not in_header:
                count += part.count(b"T") + part.count(b"t")
    return count


def pure_codes(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the base codes of letters, (N,) → (N,).

    All letters must be A, C, G, T or U, in either case. U counts as T. In ASCII, bits 1 and 2 of such a letter
    (counted from 0) are the upper and the lower bit of its base code. Using these bits is several times faster than a
    table look-up.
    """
    codes = letters >> np.uint8(2)
    codes &= np.uint8(1)
    codes |= letters & np.uint8(2)
    return codes


def without_whitespace(raw: bytes) -> bytes:
    """Return `raw` without line ends, spaces and tabs."""
    for i in range(len(WHITESPACE)):
        if (blank := WHITESPACE[i : i + 1]) in raw:
            raw = raw.replace(blank, b"")
    return raw


class RegionReader:
    """Reader of regions in an uncompressed FASTA.

    Regions in file order are read in one pass. Skipping a long distance forward, or backward, costs one seek.

    Args:
        path: Path of the uncompressed FASTA.
        display_name: The file's name in messages.
    """

    def __init__(self, path: str, display_name: str) -> None:
        self._stream: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115 (closed in close)
        self._display_name = display_name
        self._contig = -1
        self._start = 0
        self._letters = b""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, contig: int, start: int, end: int, anchor: tuple[int, int]) -> NDArray[np.uint8]:
        """Return letters start … end - 1 of a contig, in upper or lower case as in the file, (end - start,) uint8.

        Args:
            contig: Index of the contig within the file.
            anchor: One of the contig's `anchors`, at or before `start`.

        Raises `DataError` if the file ends before `end`.
        """
        # Without the second condition, each of many short regions would be read from its anchor, 250,000 bases away.
        is_ahead = contig == self._contig and self._start <= start
        if not is_ahead or anchor[1] > self._start + len(self._letters):
            self._stream.seek(anchor[0])
            self._contig = contig
            self._start = anchor[1]
            self._letters = b""
        while (missing := end - self._start - len(self._letters)) > 0:
            # Read a little more than the missing bases, to allow for line ends.
            raw = self._stream.read(missing + missing // 16 + 256)
            if not raw:
                raise DataError(f"{self._display_name}: became shorter while it was read; rerun once it is complete")
            # Drop letters before the region, so that memory holds about one region.
            letters = self._letters + without_whitespace(raw)
            passed = min(len(letters), max(0, start - self._start))
            self._start += passed
            self._letters = letters[passed:]
        if end <= start:
            return _NO_LETTERS
        return np.frombuffer(self._letters, np.uint8, end - start, start - self._start)


class RegionReaders:
    """Context manager that opens a `RegionReader` on demand and keeps one file open at a time."""

    def __init__(self) -> None:
        self._path = ""
        self._reader: RegionReader | None = None

    def __enter__(self) -> RegionReaders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def of(self, path: str, display_name: str) -> RegionReader:
        """Return a reader of the file `path`. `display_name` is the file's name in messages."""
        if self._reader is None or path != self._path:
            self.__exit__()
            self._path = path
            self._reader = RegionReader(path, display_name)
        return self._reader
