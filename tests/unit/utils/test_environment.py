"""OpenMP's spin-waiting is limited, unless the user has configured it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# libgomp prints its settings when torch loads it.
COMMAND = "from dnabert_rm.cli.main import main; main(['plan', '--preset', 'tiny', '--gpu', 'cpu']); import torch"


@pytest.mark.parametrize(
    ("user", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_spin_count_is_limited_unless_the_user_sets_it(user: dict[str, str], spins: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**environ, "OMP_DISPLAY_ENV": "VERBOSE", **user},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in ran.stderr
