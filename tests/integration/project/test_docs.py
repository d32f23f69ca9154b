"""The commands in README and docs are ones that the programs take, and the quickstart runs from end to end."""

from __future__ import annotations

import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from doc_commands import blocks, commands, fault, lines
from support import ROOT, run_ranks

from data_prep.cli import main as data_prep
from dnabert_rm.cli.main import main as dnabert_rm

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "ds_configs" / "README.md"]
DOCUMENTS += [ROOT / "dev" / "benchmarks.md", ROOT / "dev" / "reproduce.md"]
QUICKSTART = ROOT / "docs" / "quickstart.md"
FEWER = {"--steps": "4", "--save-every": "2", "--validation.every": "4", "--epochs": "1"}
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


def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Every command in its order, on random bases in place of the download; ours in this process, which has torch.

    Each quoted line of output must begin as a printed line does, numbers apart.
    """
    write_small_yeast(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = QUICKSTART.read_text()
    shell = [line for block in blocks(text, "bash") for line in lines(block)]
    assert len(shell) > 15
    for line in shell:
        run(shlex.split(line), line)
    for name, rows in {"scan.csv": 171, "scores.csv": 151, "vectors.ids.csv": 35, "curves.csv": 3}.items():
        assert len((tmp_path / "toy" / name).read_text().splitlines()) >= rows, name
    assert (tmp_path / "toy" / "scores.png").stat().st_size > 5000
    printed = capfd.readouterr()
    tables = [path.read_text() for path in (tmp_path / "toy").glob("*.csv")]
    beginnings = {beginning(line) for part in (printed.out, printed.err, *tables) for line in part.splitlines()}
    quoted = [line for block in blocks(text, "text") for line in block.splitlines() if line != "…" and line[:1] != "$"]
    assert len(quoted) > 30
    unseen = [line for line in quoted if beginning(line) not in beginnings]
    assert not unseen, unseen


def beginning(line: str) -> str:
    """Return the first 30 characters of a line after numbers, contigs, sequences and hashes were replaced."""
    line = re.sub(r"chr[IVX]+", "CONTIG", re.sub(r"\b[0-9a-f]{64}\b|[ACGT]{66}", "LONG", " ".join(line.split())))
    return re.sub(r"-?\d[\d,.]*", "N", line)[:30]


def write_small_yeast(folder: Path) -> None:
    """Write `yeast.fa.gz` and `transcripts.bed` with the contigs that the page names, up to its last position."""
    rng = np.random.default_rng(0)
    sizes = {"chrI": 100_000, "chrXI": 180_000, "chrXVI": 60_000}
    bases = {name: rng.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size).tobytes() for name, size in sizes.items()}
    # Rows of the report on dropped intervals: the bases of one occur twice, one is at a contig's end, one occurs twice.
    bases["chrXVI"] = bases["chrXVI"][:30_000] + bases["chrI"][50_000:52_000] + bases["chrXVI"][32_000:]
    fasta = b"".join(b">%s\n%s\n" % (name.encode(), sequence) for name, sequence in bases.items())
    (folder / "yeast.fa.gz").write_bytes(gzip.compress(fasta))
    starts = [(name, start) for name, size in sizes.items() for start in range(1000, size - 1000, 2000)]
    starts += [("chrI", 10), ("chrI", 1000)]
    rows = [f"{name}\t{start}\t{start + 700}\t.\t0\t{'+-'[start % 4000 == 1000]}" for name, start in starts]
    (folder / "transcripts.bed").write_text("\n".join(rows) + "\n")


def run(words: list[str], line: str) -> None:
    """Run a command of the quickstart with fewer steps, except for the installation, downloads and TensorBoard."""
    words = [FEWER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] in ("make", "source", "curl", "tensorboard"):
        return
    if words[:2] == ["dnabert-rm", "pretrain"]:
        # A forked rank in place of --gpus, which test_stop_by_launcher.py holds; it has a folder of its own.
        assert words[2:4] == ["--gpus", "1"]
        print(run_ranks(1, *(word if not word.startswith("toy/") else Path.cwd() / word for word in words[4:]),
                        timeout=600))  # fmt: skip
        return
    if words[0] == "dnabert-rm":
        assert dnabert_rm(words[1:]) == 0, line
        return
    if words[:3] == ["python", "-m", "data_prep"]:
        assert data_prep(words[3:]) == 0, line
        return
    raise AssertionError(f"no way to run this command: {line}")
