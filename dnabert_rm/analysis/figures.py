"""Colours, line styles, font sizes and file output of all figures. Only functions that draw import matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette for colour-blind readers."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORMATS = (".png", ".svg", ".pdf")
SMALL = 8
"""Font size of labels in points."""
NORMAL = 9
"""Font size of titles in points."""
_NO_DATE: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches. No display is needed.

    Raise `ConfigError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("matplotlib is not installed; install dnabert_rm[plots]") from None
    return Figure(figsize=(width, height), layout="constrained")


def check_picture_name(path: Path, flag: str = "--output") -> None:
    """Raise `ConfigError` unless the file name ends in .png, .svg or .pdf."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{flag} {path}: the file name must end in one of {', '.join(FORMATS)}")


def check_data_table(table: Path, columns: Sequence[str]) -> None:
    """Raise `ConfigError` if `table` exists, unless it is empty or its header has exactly these columns.

    A figure's data replace the data of an earlier figure, but no other table, such as the labels that are drawn.
    """
    if table.is_dir():
        raise ConfigError(f"--output: the figure's data go to {table}, which is a folder; choose another --output")
    if not table.exists() or not table.stat().st_size:
        return
    header = ",".join(columns)
    with open(table, encoding="utf-8", errors="replace") as stream:
        if stream.readline(len(header) + 1).rstrip("\n") != header:
            raise ConfigError(
                f"--output: the figure's data would replace {table}, which has other columns; choose another --output"
            )


def data_table(picture: Path, columns: Sequence[str]) -> Path:
    """Return the path of the .csv file beside a figure. Raise `ConfigError` as in `check_data_table`."""
    table = picture.with_suffix(".csv")
    check_data_table(table, columns)
    return table


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to `path`, and create missing folders. Raise `DataError` if writing fails.

    The file contains no date, so that the same figure gives the same bytes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata=_NO_DATE.get(path.suffix.lower()))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another path") from None


def data_uri(picture: Figure | Path) -> str:
    """Return a figure or a PNG file as a `data:` URI for an HTML page."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        stream = io.BytesIO()
        picture.savefig(stream, format="png", dpi=120, metadata={"Software": None})
        content = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()
