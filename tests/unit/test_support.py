"""The tests' own helpers."""

from __future__ import annotations

import sys

import pytest
from support import run_launcher

HANGS = """
import subprocess, sys, time

def wait_forever():
    time.sleep(600)

if "rank" in sys.argv:
    wait_forever()
subprocess.run([sys.executable, __file__, "rank"])
"""


def test_a_command_that_hangs_fails_with_the_stacks_of_its_processes(tmp_path) -> None:
    (tmp_path / "launcher.py").write_text(HANGS)
    with pytest.raises(AssertionError, match=r"no end after 10 s:[^$]*, line 5 in wait_forever\n"):
        run_launcher([sys.executable, tmp_path / "launcher.py"], timeout=10)
