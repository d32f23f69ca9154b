"""What somebody gets who installs the wheel and has no checkout: commands, presets, DeepSpeed configurations, a run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, random_bases, read_metrics

from dnabert_rm.cli.main import COMMANDS
from dnabert_rm.utils.errors import EXIT_USER_ERROR

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
SHIPPED = sorted(path.name for path in (ROOT / "ds_configs").iterdir())
FLAGS = ["--preset", "tiny", "--data", "prepared", "--output", "run", "--window", "64", "--global-batch", "2"]
# Every command's help by one process: one after the other they would take ten times as long.
HELPS = """
import contextlib, sys
from dnabert_rm.cli.main import COMMANDS, main
for name in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
"""


def run(words: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**clean_environment(), **variables}
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


class Installed:
    """The wheel, installed into a folder of its own, and an empty folder to work in."""

    def __init__(self, site: Path, work: Path) -> None:
        self.site, self.work = site, work

    def python(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run([sys.executable, *words], self.work, PYTHONPATH=str(self.site))

    def succeed(self, *words: str | Path) -> str:
        done = self.python(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """From a copy of the checkout to the sdist, from its files alone to the wheel, and that into a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "demo")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    built = run([sys.executable, "-c", BUILD, "build_sdist", folder], folder / "checkout")
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        sdist.extractall(folder / "sdist", filter="data")
    built = run([sys.executable, "-c", BUILD, "build_wheel", folder], next((folder / "sdist").iterdir()))
    assert built.returncode == 0, built.stderr
    site, work = folder / "site", folder / "work"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site]
    done = run([*pip, next(folder.glob("*.whl"))], folder)
    assert done.returncode == 0, done.stderr
    work.mkdir()
    found = Installed(site, work)
    (work / "genome.fa").write_text(f">one\n{random_bases(np.random.default_rng(1), 6000)}\n")
    found.succeed("-m", "data_prep", "build", "genome.fa", "--out", "prepared", "--k", "3")
    return found


def test_the_wheel_brings_presets_configurations_and_licence(installed: Installed) -> None:
    where = (
        "import dnabert_rm.config.deepspeed_config as c, data_prep; print(c.__file__, data_prep.__file__, c.DS_CONFIGS)"
    )
    assert all(Path(path).is_relative_to(installed.site) for path in installed.succeed("-c", where).split())
    assert sorted(path.name for path in (installed.site / "dnabert_rm" / "ds_configs").iterdir()) == SHIPPED
    suites = "from dnabert_rm.evaluate.suite import load_suite, suite_names; print(*map(load_suite, suite_names()))"
    assert installed.succeed("-c", suites).count("Suite(path=") == len(list((ROOT / "dnabert_rm/suites").iterdir()))
    references = (
        "from dnabert_rm.analysis.run_comparison import read_reference, reference_names; "
        "print(*(len(read_reference([name])[1]) for name in reference_names()))"
    )
    folders = sorted((ROOT / "dnabert_rm/reference_runs").iterdir())
    assert installed.succeed("-c", references).split() == [str(len(list(folder.iterdir()))) for folder in folders]
    about = next(installed.site.glob("dnabert_rm-*.dist-info"))
    assert (about / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (ROOT / "README.md").read_text().strip() in (about / "METADATA").read_text()
    assert sorted(path.name for path in installed.site.iterdir()) == sorted(
        ["bin", "data_prep", "dnabert_rm", about.name]
    )


def test_every_command_tells_its_flags(installed: Installed) -> None:
    assert installed.succeed("-c", HELPS, *COMMANDS).count("usage: dnabert-rm ") == len(COMMANDS)
    for program in ("dnabert-rm", "dnabert-prep"):
        done = run([installed.site / "bin" / program, "--help"], installed.work, PYTHONPATH=str(installed.site))
        assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_a_rank_pretrains_on_what_was_prepared(installed: Installed) -> None:
    # As `deepspeed --module dnabert_rm pretrain …` starts a rank: its place comes before the command.
    installed.succeed("-m", "dnabert_rm", "--local_rank=0", "pretrain", *FLAGS, "--steps", "2", "--log-every", "1")
    assert [row["step"] for row in read_metrics(installed.work / "run")] == [0, 1]


def test_what_is_shipped_is_found_by_name(installed: Installed) -> None:
    assert "zero3" in installed.succeed("-m", "dnabert_rm", "plan", "--preset", "10b", "--gpus", "64")
    installed.succeed("-m", "dnabert_rm", "check", *FLAGS, "--output", "another", "--ds-config", "zero1")
    done = installed.python("-m", "dnabert_rm", "check", *FLAGS, "--ds-config", "zero9")
    assert done.returncode == EXIT_USER_ERROR
    assert all(Path(name).stem in done.stderr for name in SHIPPED if name.endswith(".json")), done.stderr
