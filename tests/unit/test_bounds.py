"""The lower bounds of setup.py are those that `make test-lowest` installs."""

from __future__ import annotations

import ast
import re

from support import ROOT

REQUIREMENT = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)")


def bounds_of_setup() -> dict[str, str]:
    """Every string of setup.py that is a requirement with a lower bound."""
    texts = [
        node.value for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Constant)
    ]
    found = [REQUIREMENT.fullmatch(text) for text in texts if isinstance(text, str)]
    return {match[1]: match[2] for match in found if match}


def test_the_lowest_versions_claimed_are_those_that_are_tested() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    bounds = bounds_of_setup()
    assert len(bounds) > 15
    for name, version in bounds.items():
        assert pinned[name].split(".")[: version.count(".") + 1] == version.split("."), name
