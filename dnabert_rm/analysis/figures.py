"""What all pictures share: matplotlib where it is installed, colours that everybody can tell apart, files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by people who see red and green alike."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORMATS = (".png", ".svg", ".pdf")
SMALL, NORMAL = 8, 9
"""Font sizes in points."""
_NO_DATE: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, apart from any window system. `ConfigError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("matplotlib is not installed; install dnabert_rm[plots]") from None
    return Figure(figsize=(width, height), layout="constrained")


def check_picture_name(path: Path) -> None:
    """`ConfigError` unless the name's ending is that of a format we write."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {path}: must end in one of {', '.join(FORMATS)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, the same bytes each time, into a folder that is made if need be; `DataError` where it can't."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata=_NO_DATE.get(path.suffix.lower()))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); name another place") from None


def data_uri(picture: Figure | Path) -> str:
    """A PNG as text that a page can hold: a figure, or a file that lies there."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        stream = io.BytesIO()
        picture.savefig(stream, format="png", dpi=120, metadata={"Software": None})
        content = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()
