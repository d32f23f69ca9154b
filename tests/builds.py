"""Run the `build` command in a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ROOT, clean_environment


def build(*words: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `build` with these flags, and check that it exits with `code`."""
    command = [sys.executable, "-m", "data_prep", "build", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean_environment(), **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, including hidden ones."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tar_urls(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("shard-*.tar"))]
