"""`make test-all` counts a skipped test as failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, clean_environment

TESTS = """
import pytest
def test_passes(): pass
def test_skips(): pytest.skip("reason")
@pytest.mark.skipif(True, reason="reason")
def test_is_marked(): pass
@pytest.mark.xfail
def test_known_fault(): assert False
"""


@pytest.mark.parametrize(
    ("flags", "summary"),
    [([], "1 passed, 3 skipped, 1 xfailed"), (["--fail-skipped"], "1 failed, 1 passed, 1 xfailed, 2 errors")],
)
def test_skipped_tests(flags: list[str], summary: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text('import pytest\npytest.importorskip("no_such_package")\n')
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--continue-on-collection-errors",
        "-p",
        "conftest",
        "--rootdir",
        tmp_path,
        *flags,
        ".",
    ]
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert summary in done.stdout, done.stdout + done.stderr
