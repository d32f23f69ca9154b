"""The commands in README and docs are ones that the programs take, and the quickstart runs from end to end."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from doc_commands import blocks, commands, fault, lines
from support import ROOT, clean_environment, run_ranks

from data_prep.cli import main as data_prep
from dnabert_rm.cli.main import main as dnabert_rm

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "ds_configs" / "README.md"]
DOCUMENTS += [ROOT / "dev" / "benchmarks.md", ROOT / "dev" / "reproduce.md"]
QUICKSTART = ROOT / "docs" / "quickstart.md"
FEWER = {"--steps": "4", "--save-every": "2", "--validation.every": "4", "--epochs": "1", "--bases": "200000"}
"""What makes the quickstart's commands quick; nothing else of them is changed."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(path: Path) -> None:
    faults = {line: found for line in commands(path) if (found := fault(line))}
    assert not faults, "\n".join(f"{found}: {line}" for line, found in faults.items())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("dnabert-rm check --preset tiny --data d --output r --stepps 3 …", "unrecognized arguments: --stepps 3"),
        ("dnabert-rm check --data d --output r --steps many", "must be of type int"),
        ("dnabert-rm finetune --modell m …", "unrecognized arguments: --modell m"),
        ("dnabert-rm trian x", "no command"),
        ("python -m data_prep build --kk 3 …", "unrecognized arguments: --kk"),
        ("deepspeed --num_gpus 2 launch_scripts/pretrain.sh --data d --output r --window", "expected one argument"),
        ("launch_scripts/pretrain_mpi.sh -n 2 -- --data d --output r --steps 1.5", "must be of type int"),
    ],
)
def test_a_wrong_command_is_seen(line: str, found: str) -> None:
    assert found in fault(line)


def test_many_commands_are_found() -> None:
    assert sum(len(list(commands(path))) for path in DOCUMENTS) > 60


def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in its order, on its simulated genome; ours in this process, which has torch imported already."""
    text = QUICKSTART.read_text()
    (script,) = re.findall(r"Save\s+this as `(\w+\.py)`", text)
    (tmp_path / script).write_text(blocks(text, "python")[0])
    monkeypatch.chdir(tmp_path)
    shell = [line for block in blocks(text, "bash") for line in lines(block)]
    assert len(shell) > 12
    for line in shell:
        run(shlex.split(line), line)
    for name, rows in {"scan.csv": 95, "scores.csv": 21, "vectors.ids.csv": 301, "curves.csv": 3}.items():
        assert len((tmp_path / "toy" / name).read_text().splitlines()) >= rows, name


def run(words: list[str], line: str) -> None:
    """Run a command of the quickstart with fewer steps; a page to look at (tensorboard) is left out."""
    words = [FEWER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "tensorboard":
        return
    if words[:2] == ["dnabert-rm", "pretrain"]:
        # A forked rank in place of --gpus, which test_stop_by_launcher.py holds; it has a folder of its own.
        assert words[2:4] == ["--gpus", "1"]
        run_ranks(1, *(word if not word.startswith("toy/") else Path.cwd() / word for word in words[4:]),
                  timeout=600)  # fmt: skip
        return
    if words[0] == "dnabert-rm":
        assert dnabert_rm(words[1:]) == 0, line
        return
    if words[:3] == ["python", "-m", "data_prep"]:
        assert data_prep(words[3:]) == 0, line
        return
    if words[0] == "gzip":
        Path(words[-1]).write_bytes(gzip.compress(Path(words[2]).read_bytes()))
        return
    done = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
