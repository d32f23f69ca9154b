"""Text files of `predict` and `score-variants`, compressed with gzip if their name ends in .gz."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

GZIP_ENDING = ".gz"
OTHER_COMPRESSIONS = (".bgz", ".bz2", ".xz", ".zip", ".zst")
_LEVEL = 6
"""Level of the program gzip. Python's default of 9 takes much longer for files of about the same size."""


def text_ending(path: Path) -> str:
    """Return the ending of a file name in lower case, without .gz: `.bed` for both scan.bed and scan.BED.gz."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending == GZIP_ENDING else ending


def compression_problems(output: Path) -> Iterator[str]:
    """Yield an error message if the file name promises a compression other than gzip."""
    if output.suffix.lower() in OTHER_COMPRESSIONS:
        yield f"--output {output}: only gzip is written; choose a name that ends in {GZIP_ENDING}"


@contextlib.contextmanager
def open_gzip(path: Path) -> Iterator[BinaryIO]:
    """Open a gzip file for writing. It has no name and date, so that the same content gives the same bytes."""
    with (
        open(path, "wb") as plain,
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=plain, mtime=0) as compressed,
    ):
        yield cast(BinaryIO, compressed)


@contextlib.contextmanager
def open_text(path: Path, output: Path) -> Iterator[TextIO]:
    """Open the file `path` for writing text, as gzip if the name of `output`, its later name, ends in .gz."""
    if output.suffix.lower() != GZIP_ENDING:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            yield stream
        return
    with open_gzip(path) as binary, io.TextIOWrapper(binary, newline="", encoding="utf-8") as text:
        yield text


@contextlib.contextmanager
def read_text(path: Path) -> Iterator[TextIO]:
    """Open a file that `open_text` has written for reading."""
    opener = gzip.open if path.suffix.lower() == GZIP_ENDING else open
    with opener(path, "rt", newline="", encoding="utf-8") as stream:
        yield cast(TextIO, stream)
