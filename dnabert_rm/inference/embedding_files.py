"""Streaming writers of named vectors to `.npy`, CSV and Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.utils.errors import ConfigError


class VectorFile(Protocol):
    """Interface of the writers of named vectors."""

    def write(self, names: Sequence[Sequence[Any]], vectors: NDArray[np.floating]) -> None:
        """Append `vectors`, shape (vectors, width), and their `names`."""

    def close(self) -> None:
        """Complete and close the file."""


class NpyFile:
    """A `.npy` file with one float32 vector per row, and a CSV table of names beside it.

    The number of rows in the header is correct only after `close`.
    """

    def __init__(self, path: Path, names_path: Path, columns: Sequence[str], width: int):
        self._stream = open(path, "wb")  # noqa: SIM115 (closed in close)
        self._names = open(names_path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.writer(self._names, lineterminator="\n")
        self._writer.writerow(columns)
        self.num_rows = 0
        self._width = width
        self._write_header()
        self._header_bytes = self._stream.tell()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.num_rows, self._width)}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, names: Sequence[Sequence[Any]], vectors: NDArray[np.floating]) -> None:
        """Append vectors and names. The counts may differ, because with `--per-token` one name covers many vectors."""
        self._writer.writerows(names)
        self._stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self.num_rows += len(vectors)

    def close(self) -> None:
        """Write the final number of rows into the header, and close both files.

        The header's size does not change, because numpy reserves space in it for a larger number of rows.
        """
        self._stream.seek(0)
        self._write_header()
        assert self._stream.tell() == self._header_bytes
        self._stream.close()
        self._names.close()


class CsvFile:
    """A CSV table with the name columns, then one column per vector element (e0, e1, …). NaN becomes an empty cell."""

    def __init__(self, path: Path, columns: Sequence[str], width: int):
        self._stream = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._writer.writerow([*columns, *(f"e{i}" for i in range(width))])

    def write(self, names: Sequence[Sequence[Any]], vectors: NDArray[np.floating]) -> None:
        """Append `vectors`, shape (names, width), and their `names`."""
        for name, vector in zip(names, vectors, strict=True):
            self._writer.writerow([*name, *("" if np.isnan(value) else f"{value:.7g}" for value in vector)])

    def close(self) -> None:
        """Complete and close the file."""
        self._stream.close()


class ParquetFile:
    """A Parquet file with the name columns and the column `embedding`, a list of `width` float32 values.

    `embedding` is null if any of the values is NaN.
    """

    def __init__(self, path: Path, columns: Sequence[str], width: int):
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise ConfigError(
                "--output: Parquet needs pyarrow; install it (pip install 'dnabert_rm[parquet]')"
            ) from None
        self._arrow = arrow
        fields = [(name, arrow.int64() if name in ("start", "end") else arrow.string()) for name in columns]
        self._schema = arrow.schema([*fields, ("embedding", arrow.list_(arrow.float32(), width))])
        self._writer = parquet.ParquetWriter(path, self._schema)

    def write(self, names: Sequence[Sequence[Any]], vectors: NDArray[np.floating]) -> None:
        """Append `vectors`, shape (names, width), and their `names` as one row group."""
        flat = self._arrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        missing = self._arrow.array(np.isnan(vectors).any(axis=1))
        lists = self._arrow.FixedSizeListArray.from_arrays(
            flat, type=self._schema.field("embedding").type, mask=missing
        )
        columns = [
            self._arrow.array(column, field.type)
            for column, field in zip(zip(*names, strict=True), self._schema, strict=False)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays([*columns, lists], schema=self._schema))

    def close(self) -> None:
        """Complete and close the file."""
        self._writer.close()


def names_path(path: Path) -> Path:
    """Return the path of the table that names the rows of a `.npy` file, such as emb.ids.csv for emb.npy."""
    return path.with_suffix(".ids.csv")
