"""A real headless browser for tests of pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")


def browse(folder: Path, *words: str, width: int = 1300, height: int = 2600) -> str:
    """Run the browser without a window and return its output. Its profile is in `folder`."""
    return browse_with_log(folder, *words, width=width, height=height)[0]


def browse_with_log(folder: Path, *words: str, width: int = 1300, height: int = 2600) -> tuple[str, list[str]]:
    """Run the browser without a window. Return its output and the lines that pages wrote to the console."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        # In a container, root has no sandbox and the shared memory may be small.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
