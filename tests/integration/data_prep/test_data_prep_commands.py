"""The data_prep commands as separate processes: progress, imports, memory, help."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from builds import build
from support import ROOT, clean_environment, random_bases, run_cli


def test_progress_is_shown_on_a_terminal_only(test_data: Path, tmp_path: Path) -> None:
    genome = test_data / "genomes" / "ecoli_K12_MG1655.fa.gz"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "data_prep", "build", str(genome), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=-3, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        # On Linux, reading a terminal whose other end is closed raises an error.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                seen += data
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"shards: +\d+%\|.*base/s", seen), seen[:500]
    assert build(genome, "--out", tmp_path / "quiet").stderr == ""


def test_torch_is_never_imported(tmp_path: Path) -> None:
    """Builds succeed with a torch module that fails on import, in the workers as well."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "g.fa").write_text(">a\n" + "ACGTTGCA" * 500 + "\n")
    path = {"PYTHONPATH": str(tmp_path)}
    for workers in ("1", "2"):
        build(tmp_path / "g.fa", "--out", tmp_path / workers, "--workers", workers, "--shard-tokens", "70000", **path)


def test_webdataset_finds_torch_after_a_build(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\nACGTTGCAAC\n")
    code = (
        "import sys; from data_prep.cli import main\n"
        f"assert main(['build', '{tmp_path}/g.fa', '--out', '{tmp_path}/out', '--workers', '1']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "import torch, webdataset\n"
        "assert issubclass(webdataset.WebDataset, torch.utils.data.IterableDataset)\n"
    )
    done = run_cli("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak memory from")
def test_memory_does_not_grow_with_the_contig(tmp_path: Path) -> None:
    """A contig of 48 Mbase on one line needs the memory of a few segments and one block of the scan."""
    sequence = bytes(np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 3_000_000)) * 16
    (tmp_path / "g.fa").write_bytes(b">a\n" + sequence + b"\n")
    (tmp_path / "small.fa").write_bytes(b">a\n" + sequence[:1000] + b"\n")
    code = (
        "from data_prep.cli import main\n"
        "for name in ('small', 'g'):\n"
        f"    path = '{tmp_path}/' + name\n"
        "    assert main(['build', path + '.fa', '--out', path, '--workers', '1']) == 0\n"
        "    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = run_cli("-c", code)
    before, after = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert after - before < 20_000, "kilobytes"


@pytest.mark.parametrize(
    "command", ["", "build", "verify", "inspect", "stats", "train-bpe", "labels", "tables", "simulate"]
)
def test_help_is_quick_and_ends_with_an_example(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_cli("-m", "data_prep", *command.split(), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "example:\n  python -m data_prep" in done.stdout
    # CPU time, because elapsed time is longer on a busy machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_locale_without_utf8(tmp_path: Path) -> None:
    """Names and the histogram are printed with the characters that the terminal has."""
    folder = tmp_path / "génome"
    folder.mkdir()
    (folder / "g.fa").write_text(">é\nACGTACGTAC\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def run(*words: str | Path, **variables: str) -> bytes:
        command = [sys.executable, "-m", "data_prep", *map(str, words)]
        environment = {**clean_environment(), **variables}
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=-1, timeout=300, check=True).stdout

    run("build", folder / "g.fa", "--out", folder / "out", "--workers", "1", **locale)
    assert b"  ####################" in run("stats", folder / "out", "--workers", "1", **locale)
    assert b"g:\\xe9:0-10 train ACGTACGTAC" in run("inspect", folder / "out", **locale)
    assert b"##########" in run("stats", folder / "out", "--workers", "1", PYTHONIOENCODING="latin-1")
    assert "██████████" in run("stats", folder / "out", "--workers", "1", PYTHONIOENCODING="utf-8").decode()


def test_a_full_disk_for_train_bpe(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\n" + random_bases(np.random.default_rng(0), 900_000) + "\n")
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress((tmp_path / "g.fa").read_bytes()))
    for workers in ("1", "2"):
        words = ["train-bpe", tmp_path / "g.fa.gz", "--out", tmp_path / "out.model", "--workers", workers]
        script = f"ulimit -f 100; exec {sys.executable} -m data_prep " + " ".join(map(str, words))
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert f"--out {tmp_path}/out.model: {tmp_path} cannot be written (File too large); free some" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa", "g.fa.gz"]
