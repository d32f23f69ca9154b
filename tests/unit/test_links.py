"""The check of links and paths in the docs: each kind of dead one is told with its line, live ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_links import faults

LIVE = """# Map

[to a heading](../README.md#the-file-twice-1), [here](#map), [a folder](images), ![picture](images/a%20b.png),
[elsewhere](https://example.org/docs/none.md), tests/unit/test_*.py, docs/architecture.md.

| what | where |
|---|---|
| one | `train/loop.py`, `train/`, `state.py`, `not_ours.json`, `TAGS` |
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose docs have every kind of live link."""
    for name in (
        "docs/images/a b.png",
        "tests/unit/test_a.py",
        "dnabert_rm/train/loop.py",
        "dnabert_rm/train/state.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text("## The *file*, `twice`\n\n## The file twice\n")
    (tmp_path / "docs/architecture.md").write_text(LIVE)
    return tmp_path


def test_live_links_are_passed(project: Path) -> None:
    assert list(faults(project)) == []


@pytest.mark.parametrize(
    ("live", "dead", "line"),
    [
        ("README.md#the-file-twice-1", "README.md#the-file-twice-2", 3),
        ("(#map)", "(#maps)", 3),
        ("(images)", "(pictures)", 3),
        ("(images/a%20b.png)", "(images/a%20c.png)", 3),
        ("(images)", "(../../README.md)", 3),
        ("tests/unit/test_*.py", "tests/unit/tests_*.py", 4),
        ("`train/loop.py`", "`train/lop.py`", 8),
        ("`state.py`", "`states.py`", 8),
        ("`train/`", "`trains/`", 8),
    ],
)
def test_a_dead_link_is_told_with_its_line(project: Path, live: str, dead: str, line: int) -> None:
    (project / "docs/architecture.md").write_text(LIVE.replace(live, dead))
    (fault,) = faults(project)
    assert fault.startswith(f"docs/architecture.md:{line}: ")
