"""What a command says while it works, on standard error: a bar on a terminal, now and then a line in a file."""

from __future__ import annotations

import sys
from typing import Any, TextIO

SECONDS_A_LINE = 30
"""Seconds between two lines where standard error is no terminal; shorter work writes none."""


def progress_bar(
    what: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    scaled: bool = True,
    leave: bool = False,
    quiet: bool = False,
) -> Any:
    """A tqdm bar to `update(number)`, used in a `with` statement or closed.

    It shows `done` of `total` units (None where that is not known), the rate and the time left. `scaled` writes 12.1M
    for large numbers, `leave` keeps the bar of a terminal on the screen, `quiet` shows nothing.
    """
    from tqdm import tqdm

    options: dict[str, Any] = {"desc": what, "total": total, "initial": done, "unit": unit, "unit_scale": scaled}
    if quiet or total == 0:
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, file=sys.stderr, leave=leave)
    form = "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"
    return tqdm(
        **options, file=_Lines(sys.stderr), leave=False, bar_format=form, miniters=1,
        mininterval=SECONDS_A_LINE, delay=SECONDS_A_LINE,
    )  # fmt: skip


def notice(text: str) -> None:
    """Say something that is not a result, on standard error."""
    print(text, file=sys.stderr)


class _Lines:
    """A file for tqdm in which each state of the bar is a line of its own, where a terminal would overwrite it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a bar as a line; what only moves the cursor is left out."""
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the stream below."""
        self.stream.flush()
