"""Sequences to predict on, from FASTA or tables, and how long ones are cut: all as streams, in bounded memory.

Words: a *unit* is what gets one result, a record or a tile of one; a *window* is what the model sees at once.
Bases are 0-based and half-open, counted from the start of the record.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dnabert_rm.genome.fasta_stream import NUCLEOTIDES, Input, fasta_records, letter_fault
from dnabert_rm.utils.errors import DataError

SEQUENCE_COLUMN, ID_COLUMN = "sequence", "id"
LONG = ("window", "middle")
_SPOOLED_BYTES = 1 << 22
"""A longer record whose middle is wanted waits on disk for its end."""

Records = Iterator[tuple[str, Iterator[bytes]]]
"""The name of each record and its letters in blocks, to be used before the next record is asked for."""


@dataclass
class Unit:
    """What gets one result: bases `start` … `end` - 1 of a record; `end` is set with the last window."""

    name: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Window:
    """What the model sees at once: the `letters` from base `start` on, exactly covered by tokens."""

    unit: Unit
    letters: bytes
    start: int
    is_last: bool


@dataclass(frozen=True)
class Tokens:
    """How letters become tokens: `k` bases a token, `step` bases from one to the next, `room` for a model's input."""

    k: int
    step: int
    room: int

    def count(self, num_bases: int) -> int:
        """Tokens of so many bases."""
        return max(0, (num_bases - self.k) // self.step + 1)

    def bases(self, num_tokens: int) -> int:
        """Bases that so many tokens cover."""
        return (num_tokens - 1) * self.step + self.k if num_tokens else 0


# ---- reading


def read_records(source: Input, id_column: str | None = None) -> Records:
    """The records of a FASTA file, or the rows of a CSV or TSV table with the column `sequence`.

    A row's name is its `id_column`, by default the column `id` where there is one, else the row's number from 1.
    `DataError` names the line of what can't be read.
    """
    lines, number = source.lines(), 0
    for line in lines:
        number += 1
        if line.removeprefix(b"\xef\xbb\xbf").strip():
            break
    else:
        raise DataError(f"{source.shown}: is empty; FASTA, or a table with the column {SEQUENCE_COLUMN}, is expected")
    if (header := line.removeprefix(b"\xef\xbb\xbf").lstrip()).startswith(b">"):
        return fasta_records(itertools.chain([header], lines), source.shown, number)
    if line.startswith(b"@"):
        raise DataError(f"{source.shown}, line {number}: starts with '@' like FASTQ; convert it to FASTA first")
    return _table_records(itertools.chain([line], lines), source.shown, number - 1, id_column)


def _table_records(lines: Iterable[bytes], shown: str, lines_before: int, id_column: str | None) -> Records:
    """Rows of a table; `lines_before` its header are blank."""
    csv.field_size_limit(sys.maxsize)  # the module's own limit is 131,072 letters a field
    texts = _texts(lines, shown)
    header = next(texts)
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    where = f"{shown}:{lines_before + 1}"
    sequence_at = _column(where, names, SEQUENCE_COLUMN)
    id_at = _column(where, names, id_column or ID_COLUMN) if id_column or _has(names, ID_COLUMN) else None
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    rows = itertools.count(1)
    try:
        for fields in reader:
            where = f"{shown}:{lines_before + 1 + reader.line_num}"
            if not fields or fields == [""]:
                continue
            if len(fields) != len(names):
                raise DataError(f"{where}: has {len(fields)} columns where the header has {len(names)}; mend the row")
            letters = _checked(fields[sequence_at].strip(), where)
            row = next(rows)
            yield str(row) if id_at is None else fields[id_at], iter([letters])
    except csv.Error as error:
        raise DataError(f"{shown}:{lines_before + 1 + reader.line_num}: not a valid row ({error})") from None


def _texts(lines: Iterable[bytes], shown: str) -> Iterator[str]:
    """Whole lines as text: `Input.lines` cuts those that are very long."""
    held: list[bytes] = []
    for line in itertools.chain(lines, [b""]):
        held.append(line)
        if line.endswith(b"\n") or not line:
            try:
                text = b"".join(held).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise DataError(
                    f"{shown}: not a text file; FASTA, or a CSV or TSV table in UTF-8, is expected"
                ) from None
            if text:
                yield text
            held = []


def _has(names: list[str], wanted: str) -> bool:
    return any(name.lower() == wanted for name in names)


def _column(where: str, names: list[str], wanted: str) -> int:
    found = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(found) != 1:
        shown = ", ".join(repr(name if len(name) <= 20 else name[:20] + "…") for name in names[:6])
        what = f"{len(found)} columns" if found else "no column"
        raise DataError(f"{where}: {what} {wanted!r} (found: {shown}), and no FASTA ('>name'); name one column so")
    return found[0]


def _checked(sequence: str, where: str) -> bytes:
    if not sequence:
        raise DataError(f"{where}: the sequence is empty; remove the row or fill it in")
    letters = sequence.encode("utf-8")
    if wrong := letters.translate(None, NUCLEOTIDES):
        raise DataError(f"{where}: {letter_fault(wrong[0])}")
    return letters


# ---- cutting


def units(records: Records, tile: int | None = None, step: int | None = None) -> Iterator[tuple[Unit, Iterator[bytes]]]:
    """Each record as one unit, or its tiles of `tile` bases, `step` apart (by default side by side).

    The last tile ends with the record, so it may be shorter; no tile lies wholly in the one before.
    """
    for name, blocks in records:
        if tile is None:
            yield Unit(name), blocks
        else:
            for start, letters in _tiles(blocks, tile, step or tile):
                yield Unit(name, start), iter([letters])


def _tiles(blocks: Iterable[bytes], size: int, step: int) -> Iterator[tuple[int, bytes]]:
    held, held_from, start = bytearray(), 0, 0
    for block in blocks:
        held += block
        while held_from + len(held) >= start + size:
            yield start, bytes(held[start - held_from : start - held_from + size])
            start += step
        passed = min(len(held), max(0, start - held_from))
        del held[:passed]
        held_from += passed
    total = held_from + len(held)
    if start == 0 or start - step + size < total > start:
        yield start, bytes(held[start - held_from :])


def windows_of(unit: Unit, blocks: Iterator[bytes], tokens: Tokens, long: str) -> Iterator[Window]:
    """The windows of one unit: all of it where it fits, else overlapping windows or its middle alone.

    `long` is "window" (those of `windows.windows`, half a window apart) or "middle". A unit without a whole token has
    one window without letters.
    """
    return _overlapping(unit, blocks, tokens) if long == "window" else _middle(unit, blocks, tokens)


def _overlapping(unit: Unit, blocks: Iterator[bytes], tokens: Tokens) -> Iterator[Window]:
    stride = max(1, tokens.room // 2)
    held, held_from, total, next_token = bytearray(), 0, 0, 0

    def window(first: int, num_tokens: int, is_last: bool) -> Window:
        at = first * tokens.step - held_from
        return Window(unit, bytes(held[at : at + tokens.bases(num_tokens)]), unit.start + at + held_from, is_last)

    for block in blocks:
        held += block
        total += len(block)
        while next_token + tokens.room < tokens.count(total):
            yield window(next_token, tokens.room, False)
            next_token += stride
        # The last window may begin before the next one would.
        kept_from = min(next_token, max(0, tokens.count(total) - tokens.room)) * tokens.step
        del held[: kept_from - held_from]
        held_from = kept_from
    unit.end = unit.start + total
    num_tokens = tokens.count(total)
    yield window(max(0, num_tokens - tokens.room), min(tokens.room, num_tokens), True)


def _middle(unit: Unit, blocks: Iterator[bytes], tokens: Tokens) -> Iterator[Window]:
    """The middle of a record is known at its end only, so a long one goes through a temporary file."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as spool:
        for block in blocks:
            spool.write(block)
        total = spool.tell()
        num_tokens = tokens.count(total)
        # As in fine-tuning: where the middle can't be centred, one more token is cut on the right.
        first = max(0, num_tokens - tokens.room) // 2 * tokens.step
        spool.seek(first)
        letters = spool.read(tokens.bases(min(tokens.room, num_tokens)))
    unit.end = unit.start + total
    yield Window(unit, letters, unit.start + first, True)
