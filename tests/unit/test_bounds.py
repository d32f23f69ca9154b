"""The lower bounds of setup.py are those that `make test-lowest` installs."""

from __future__ import annotations

import ast
import re

from support import ROOT

REQUIREMENT = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)")


def bounds_of_setup() -> dict[str, str]:
    """Every string of setup.py that is a requirement with a lower bound, but for the tools of the tests."""
    parts = ast.parse((ROOT / "setup.py").read_text()).body
    tools = ("TEST", "LINT")
    kept = [part for part in parts if not (isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) in tools)]
    nodes = [node for part in kept for node in ast.walk(part)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [REQUIREMENT.fullmatch(text) for text in texts]
    return {match[1]: match[2] for match in found if match}


def test_the_lowest_versions_claimed_are_those_that_are_tested() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    bounds = bounds_of_setup()
    assert len(bounds) > 15
    for name, version in bounds.items():
        assert pinned[name].split(".")[: version.count(".") + 1] == version.split("."), name
