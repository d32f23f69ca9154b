"""Columns of a prepared folder: `columns.npz`, arrays with one row per segment or contig, beside the manifest.

Draft assemblies have millions of contigs. Arrays of their lengths are read and checked in a moment, and need a few
bytes a row; JSON objects would take minutes and gigabytes. A column is read when it is first used. The manifest holds
the number of rows and the SHA-256 of each column's content, so the compression does not change the data's fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import atomic_file

COLUMNS_NAME = "columns.npz"
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""Exceptions of zipfile and NumPy for a damaged file."""
_NPY_HEADER_BYTES = 128
"""Number of bytes before the data in a `.npy` file of a one-dimensional array, as NumPy writes it."""
CONTIG_COLUMNS = ("contig_genome", "contig_length", "contig_tokens")
_NAMES, _LEFT_OUT = "contig_name", "left_out_"


@dataclass(frozen=True)
class ContigInfo:
    """One FASTA record.

    `length` is in bases. `tokens` is the number of stored tokens. The keys of `left_out` are the reasons why bases were
    left out. The values are the numbers of bases left out for each reason.
    """

    genome: str
    contig: str
    length: int
    tokens: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class ColumnInfo:
    """Entry of a column in the manifest: its number of rows, and the SHA-256 of the rows' bytes."""

    rows: int
    sha256: str


class ContigTable(Sequence[ContigInfo]):
    """The C contigs of a prepared folder.

    Args:
        genomes: Names of the genomes.
        columns: `contig_genome`, `contig_length` and `contig_tokens` (C,) int64, where `contig_genome` is an index into
            `genomes`; `contig_name`, the names in UTF-8, each followed by a line feed, as uint8; `left_out_REASON` (C,)
            int64, the number of bases left out for each reason.
    """

    def __init__(self, genomes: Sequence[str], columns: Mapping[str, NDArray]) -> None:
        self.genomes = list(genomes)
        self.columns = columns

    @classmethod
    def from_columns(
        cls,
        genomes: Sequence[str],
        genome: NDArray[np.int64],
        names: Sequence[str],
        lengths: NDArray[np.int64],
        tokens: NDArray[np.int64],
        left_out: Mapping[str, NDArray[np.int64]],
    ) -> ContigTable:
        """Return the table with these columns. Raises ValueError if a name has a line feed."""
        if any("\n" in name for name in names):
            raise ValueError("the name of a contig has a line feed")
        text = "".join(f"{name}\n" for name in names)
        columns = dict(zip(CONTIG_COLUMNS, (genome, lengths, tokens), strict=True))
        columns[_NAMES] = np.frombuffer(text.encode(), dtype=np.uint8)
        return cls(genomes, {**columns, **{f"{_LEFT_OUT}{reason}": column for reason, column in left_out.items()}})

    @classmethod
    def from_rows(cls, rows: Sequence[ContigInfo]) -> ContigTable:
        """Return the table of these contigs. Raises TypeError or ValueError for rows that don't hold numbers."""
        genomes = list(dict.fromkeys(row.genome for row in rows))
        numbers = {genome: number for number, genome in enumerate(genomes)}
        reasons = sorted({reason for row in rows for reason in row.left_out})
        return cls.from_columns(
            genomes,
            genome=_integers([numbers[row.genome] for row in rows]),
            names=[row.contig for row in rows],
            lengths=_integers([row.length for row in rows]),
            tokens=_integers([row.tokens for row in rows]),
            left_out={reason: _integers([row.left_out.get(reason, 0) for row in rows]) for reason in reasons},
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def names(self) -> list[str]:
        """Names of the contigs."""
        names = self.columns[_NAMES].tobytes().decode().split("\n")[:-1]
        if len(names) != len(self):
            raise DataError(f"{COLUMNS_NAME}: has {len(names)} names of {len(self)} contigs; build the data again")
        return names

    @cached_property
    def genome(self) -> NDArray[np.int64]:
        """Index of each contig's genome in `genomes`, (C,) int64."""
        genome = self.columns["contig_genome"]
        if len(genome) and not 0 <= genome.min() <= genome.max() < len(self.genomes):
            raise DataError(f"{COLUMNS_NAME}: has a contig of an unknown genome; build the data again")
        return genome

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of bases of each contig, (C,) int64."""
        return self.columns["contig_length"]

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """Number of stored tokens of each contig, (C,) int64."""
        return self.columns["contig_tokens"]

    @cached_property
    def left_out(self) -> dict[str, NDArray[np.int64]]:
        """Number of bases of each contig that were left out, (C,) int64, keyed by reason."""
        names = filter(is_left_out, self.columns)
        return {name.removeprefix(_LEFT_OUT): self.columns[name] for name in names}

    @overload
    def __getitem__(self, index: int) -> ContigInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ContigInfo]: ...
    def __getitem__(self, index: int | slice) -> ContigInfo | Sequence[ContigInfo]:
        """Return the contig with this index, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        counts = ((reason, int(column[index])) for reason, column in self.left_out.items())
        return ContigInfo(
            self.genomes[self.genome[index]],
            self.names[index],
            int(self.lengths[index]),
            int(self.tokens[index]),
            {reason: count for reason, count in counts if count},
        )


def is_left_out(name: str) -> bool:
    """Return whether a column holds the numbers of bases left out for one reason."""
    return name.startswith(_LEFT_OUT)


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    column = np.array(values if len(values) else np.zeros(0, np.int64))
    if column.dtype != np.int64 or column.ndim != 1:
        raise ValueError("a number of bases or tokens is not an integer")
    return column


# The file


def write_columns(folder: Path, columns: Mapping[str, NDArray]) -> dict[str, ColumnInfo]:
    """Write `columns.npz` atomically, and return the columns' entries for the manifest.

    Every column must be a one-dimensional array of int64 or uint8.
    """
    with atomic_file(folder / COLUMNS_NAME) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **columns)  # type: ignore[arg-type]  # it also has a keyword allow_pickle
        stream.flush()
        os.fsync(stream.fileno())
    return {name: ColumnInfo(len(column), _sha256(column)) for name, column in columns.items()}


class ColumnFile(Mapping[str, NDArray]):
    """The columns of a prepared folder. Each access to a column reads and checks it.

    Args:
        content: Path of `columns.npz`, or its bytes.
        shown: The file's name in messages.
        infos: The columns' entries in the manifest. Other arrays in the file are ignored.
    """

    def __init__(self, content: Path | bytes, shown: str, infos: Mapping[str, ColumnInfo]) -> None:
        self._content = content
        self._shown = shown
        self._infos = infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, name: str) -> NDArray:
        """Return a column, (rows,) int64 or uint8. Raises `DataError` if it is missing or damaged."""
        info = self._infos[name]
        dtype = np.dtype(np.uint8 if name == _NAMES else np.int64)
        try:
            content = io.BytesIO(self._content) if isinstance(self._content, bytes) else self._content
            with zipfile.ZipFile(content) as archive:
                # Checked first, so that a damaged or malicious file can't fill the memory.
                if archive.getinfo(f"{name}.npy").file_size != _NPY_HEADER_BYTES + info.rows * dtype.itemsize:
                    raise ValueError(f"column {name} has another size than in the manifest")
                with archive.open(f"{name}.npy") as stream:
                    column: NDArray = np.lib.format.read_array(stream, allow_pickle=False)
            if column.dtype != dtype or column.shape != (info.rows,) or _sha256(column) != info.sha256:
                raise ValueError(f"column {name} does not match the manifest")
        except FileNotFoundError:
            raise DataError(f"{self._shown}: is missing; copy the file, or build the data again") from None
        except _DAMAGED as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self._shown}: is damaged ({reason}); copy the file, or build the data again") from None
        column.flags.writeable = False
        return column


def _sha256(column: NDArray) -> str:
    return hashlib.sha256(column.tobytes()).hexdigest()
