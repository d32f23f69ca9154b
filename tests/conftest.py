"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: on a few busy cores, more threads a process are several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public genomes, GUE data sets and DNABERT vocabularies; skips where it is absent."""
    folder = Path(os.environ.get("DNABERT_RM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "genomes").is_dir():
        pytest.skip(f"no test data in {folder}; set DNABERT_RM_TEST_DATA to a folder with genomes/, gue/ and dnabert/")
    return folder
