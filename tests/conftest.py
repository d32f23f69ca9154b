"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Before torch is imported: on a few busy cores, more threads a process are several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-skipped", action="store_true", help="count a skipped test as failed")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their argument: gzip holds the time, and the workers of pytest-xdist must find the same tests."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--fail-skipped"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and collector.config.getoption("--fail-skipped"):  # a module with importorskip
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public genomes, GUE data sets and DNABERT vocabularies; skips where it is absent."""
    folder = Path(os.environ.get("DNABERT_RM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "genomes").is_dir():
        pytest.skip(f"no test data in {folder}; set DNABERT_RM_TEST_DATA to a folder with genomes/, gue/ and dnabert/")
    return folder
