"""The messages that docs/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import re

import pytest
from support import ROOT

GAP = "…"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def messages() -> list[str]:
    """Every text in the code, joined over lines as Python joins it, with a gap for what is put in."""
    found = []
    for package in ("dnabert_rm", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


MESSAGES = messages()


def is_said(quoted: str) -> bool:
    """Whether one text of the code holds the fixed parts of a quotation, in their order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in quoted.split(GAP)), re.DOTALL)
    return any(pattern.search(message) for message in MESSAGES)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_said(quoted: str) -> None:
    assert max(len(part) for part in quoted.split(GAP)) >= 8, "too little is fixed to find it by"
    assert is_said(quoted)


def test_the_page_quotes_messages_and_another_would_be_seen() -> None:
    assert len(QUOTED) > 35
    assert not is_said("no such file; pass a folder that nobody has ever built")
