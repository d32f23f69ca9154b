"""Contigs: the pieces of a scan joined into records, and their bases read back by coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_scan import WHITESPACE, Piece, line_number
from dnabert_rm.utils.errors import DataError

_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Contig:
    """One FASTA record: `gaps` (n, 2) stretches without A, C, G, T; `anchors` (m, 2) of byte and base."""

    genome: str
    name: str
    source: int
    length: int
    gaps: NDArray[np.int64]
    anchors: NDArray[np.int64]

    def anchors_of(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last anchor at or before each of `starts` (n,), shape (n, 2)."""
        return self.anchors[np.searchsorted(self.anchors[:, 1], starts, "right") - 1]


def join_pieces(genome: str, source: int, pieces: Iterable[Piece]) -> list[Contig]:
    """Join the pieces of one file's ranges, in order, into contigs."""
    records: list[list[Piece]] = []
    for piece in pieces:
        if piece.name is None:
            records[-1].append(piece)
        else:
            records.append([piece])
    return [_join_record(genome, source, record) for record in records]


def _join_record(genome: str, source: int, pieces: list[Piece]) -> Contig:
    """One contig from its pieces: shift what each counted from its own start."""
    start = 0
    gaps, anchors = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    for piece in pieces:
        gaps += [gap + start for gap in piece.gaps]
        anchors.append(np.array(piece.anchors, dtype=np.int64).reshape(-1, 2) + np.array([0, start]))
        start += piece.length
    assert pieces[0].name is not None
    return Contig(genome, pieces[0].name, source, start, _merge_touching(np.concatenate(gaps)), np.concatenate(anchors))


def _merge_touching(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join stretches that a block's end cut in two."""
    apart = gaps[1:, 0] > gaps[:-1, 1]
    starts = gaps[np.concatenate([[True], apart])[: len(gaps)], 0]
    ends = gaps[np.concatenate([apart, [True]])[-len(gaps) :] if len(gaps) else slice(0), 1]
    return np.stack([starts, ends], axis=1)


def check_scan(shown: str, plain: str, pieces: list[Piece]) -> None:
    """Raise `DataError` for a file of proteins, or one that names a record twice."""
    letters = sum(piece.length for piece in pieces)
    if 2 * sum(piece.other_letters for piece in pieces) > letters:
        raise DataError(
            f"{shown}: more than half of its letters are none of A, C, G, T, U, N; DNA is expected, not protein"
        )
    seen: set[str] = set()
    for piece in pieces:
        if piece.name is None:
            continue
        if piece.name in seen:
            with open(plain, "rb") as stream:
                line = line_number(stream, piece.offset)
            raise DataError(f"{shown}, line {line}: a second record is named {piece.name!r}; rename one")
        seen.add(piece.name)


def pure_codes(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Base codes of letters that are all A, C, G, T or U in either case, U as T; shape (N,) → (N,).

    In ASCII bit 1 of these letters is the upper bit of their code, and bit 2 the lower one, which
    is several times quicker than looking them up.
    """
    codes = letters >> np.uint8(2)
    codes &= np.uint8(1)
    codes |= letters & np.uint8(2)
    return codes


def without_whitespace(raw: bytes) -> bytes:
    """`raw` without line ends and blanks."""
    for i in range(len(WHITESPACE)):
        if (blank := WHITESPACE[i : i + 1]) in raw:
            raw = raw.replace(blank, b"")
    return raw


class RegionReader:
    """The letters of stretches of contigs, fastest where the next stretch continues the last one.

    Args: `path` an uncompressed FASTA, `shown` its name in messages.
    """

    def __init__(self, path: str, shown: str) -> None:
        self._stream: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115 (closed in close)
        self._shown = shown
        self._contig = -1
        self._start = 0
        self._letters = b""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, contig: int, start: int, end: int, anchor: tuple[int, int]) -> NDArray[np.uint8]:
        """Letters start … end - 1 as they stand in the file, shape (end - start,) uint8.

        `contig` is a number that tells the file's contigs apart, `anchor` a (byte, base) of it at or before `start`.
        """
        if contig != self._contig or not self._start <= start <= self._start + len(self._letters):
            self._stream.seek(anchor[0])
            self._contig, self._start, self._letters = contig, anchor[1], b""
        while (missing := end - self._start - len(self._letters)) > 0:
            # A little more than the bases, for the line ends.
            raw = self._stream.read(missing + missing // 16 + 256)
            if not raw:
                raise DataError(f"{self._shown}: became shorter while it was read; start again when it is complete")
            # What lies before the stretch is let go, so that memory stays at one stretch.
            letters = self._letters + without_whitespace(raw)
            passed = min(len(letters), max(0, start - self._start))
            self._start, self._letters = self._start + passed, letters[passed:]
        return np.frombuffer(self._letters, np.uint8, end - start, start - self._start) if end > start else _NOTHING


class RegionReaders:
    """The `RegionReader` of whichever file is asked for, one open at a time; closes the last when it is left."""

    def __init__(self) -> None:
        self._path = ""
        self._reader: RegionReader | None = None

    def __enter__(self) -> RegionReaders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def of(self, path: str, shown: str) -> RegionReader:
        """The reader of `path`, named `shown` in messages."""
        if self._reader is None or path != self._path:
            self.__exit__()
            self._path, self._reader = path, RegionReader(path, shown)
        return self._reader
