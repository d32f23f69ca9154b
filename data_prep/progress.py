"""What a command says while it works, on standard error: notices, and a bar that is quiet off a terminal."""

from __future__ import annotations

import sys
from typing import Any


def notice(text: str) -> None:
    """Say something that is not a result."""
    print(text, file=sys.stderr)


def progress_bar(what: str, total_bases: int) -> Any:
    """A tqdm bar (bases done, bases a second, time left) to `update(bases)`, used in a `with` statement."""
    from tqdm import tqdm

    quiet = None if total_bases else True  # None: where standard error is no terminal.
    return tqdm(desc=what, total=total_bases, unit="base", unit_scale=True, disable=quiet, leave=False)
