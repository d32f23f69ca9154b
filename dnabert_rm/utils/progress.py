"""Progress of a command on standard error: a bar on a terminal, an occasional line in a log file."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, TextIO

LINE_INTERVAL_SECONDS = 30
"""Seconds between lines if standard error is not a terminal. Shorter work prints no line."""
SMALLEST_SCALED_TOTAL = 10_000


def progress_bar(
    description: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    scaled: bool = True,
    leave: bool = False,
    quiet: bool = False,
) -> Any:
    """Return a tqdm progress bar. Call its `update(number)`, and close it or use it in a `with` statement.

    Args:
        total: Number of units, exact or estimated; None if it is unknown.
        done: Units completed before the bar starts.
        scaled: If the total is at least 10,000, abbreviate numbers, for example to 12.1M.
        leave: Keep the bar on the terminal when it is closed.
        quiet: Show nothing.
    """
    from tqdm import tqdm

    scaled = scaled and (total is None or total >= SMALLEST_SCALED_TOTAL)
    options: dict[str, Any] = {"desc": description, "total": total, "initial": done, "unit": unit, "unit_scale": scaled}
    if quiet or total == 0:
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, file=sys.stderr, leave=leave)
    return _lines_class()(
        **options,
        file=_LineStream(sys.stderr),
        leave=False,
        bar_format="{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {elapsed} elapsed, {remaining} left{postfix}",
        miniters=1,
        mininterval=LINE_INTERVAL_SECONDS,
        delay=LINE_INTERVAL_SECONDS,
    )


@cache
def _lines_class() -> Any:
    """Return the class of bars for log files, made at the first use because importing tqdm takes time."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[type-arg]
        """Shows no estimate before 2 % are done: the first units take longer, since models and libraries load."""

        monitor_interval = 0  # no thread

        @property
        def format_dict(self) -> Any:
            values = super().format_dict
            if self.total and self.n - self.initial < self.total / 50:
                values["bar_format"] = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} elapsed{postfix}"
            return values

    return Lines


def notice(text: str) -> None:
    """Print a message to standard error, since standard output is for results."""
    print(text, file=sys.stderr)


def notice_beside_bar(text: str) -> None:
    """Print a message to standard error, above the progress bars that are open."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


class _LineStream:
    """File object for tqdm that writes each update as a separate line, instead of overwriting the previous line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write an update as a line. Skip text that only moves the cursor."""
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the underlying stream."""
        self.stream.flush()
