"""A user's mistake is one line that says what to change, and exit code 2; never a traceback."""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, random_bases, run_cli, write_prepared

PRETRAIN = ["launch_scripts/pretrain.sh", "--preset", "tiny", "--output", "{tmp}/run"]
DATA = ["--data", "{tmp}/prepared"]
CLI, PREP = ["-m", "dnabert_rm.cli.main"], ["-m", "data_prep"]
RANK_ALONE = (
    "import os, sys; os.environ['RANK'] = '3'; from dnabert_rm.cli.main import run_one; "
    "sys.exit(run_one('pretrain', 'pretrain.sh', sys.argv[1:]))"
)

MISTAKES = {
    "unknown flag": ([*PRETRAIN, *DATA, "--stepps", "3"], "unrecognized arguments: --stepps 3"),
    "abbreviated flag": ([*PRETRAIN, *DATA, "--step", "3"], "unrecognized arguments: --step 3"),
    "not a number": ([*PRETRAIN, *DATA, "--steps", "many"], "--steps many: must be of type int"),
    "unknown preset": ([*CLI, "check", "--preset", "huge"], "choose one of tiny, mini"),
    "no data": ([*PRETRAIN], "give --data DIR"),
    "missing data": ([*PRETRAIN, "--data", "{tmp}/nothing"], "manifest.json: no such file"),
    "window over positions": ([*PRETRAIN, *DATA, "--window", "1024"], "more than model.max_positions (512)"),
    "no window fits": ([*PRETRAIN, *DATA, "--window", "500"], "lower --window"),
    "phases out of order": ([*PRETRAIN, *DATA, "--window", "64", "--phase-ends", "9,5"], "put --phase-ends in order"),
    "unknown policy": ([*PRETRAIN, *DATA, "--window", "64", "--masking", "all"], "one of randommask"),
    "missing DeepSpeed file": ([*PRETRAIN, *DATA, "--window", "64", "--ds-config", "zero9"], "zero3"),
    "batch does not divide": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "10", "--micro-batch", "4"],
        "change one of them",
    ),
    "batch does not divide by the ranks": (
        [*CLI, "check", *PRETRAIN[1:], *DATA, "--window", "64", "--global-batch", "4", "--ranks", "3"],
        "does not divide into 3 ranks",
    ),
    "batch larger than an epoch": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "64"],
        "lower --global-batch",
    ),
    "no room for checkpoints": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "4", "--preset", "10b", "--train.keep_last", "100000",
         "--save-every", "1"],
        "100001 checkpoints of 120.6 GB",
    ),
    "run folder is a file": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "4", "--output", "{tmp}/notes.txt/run"],
        "notes.txt is a file",
    ),
    "RANK without WORLD_SIZE": (["-c", RANK_ALONE, *DATA], "RANK is set, but WORLD_SIZE is not"),
    "missing config file": ([*PRETRAIN, *DATA, "--config", "{tmp}/none.toml"], "no such file"),
    "export of no run": ([*CLI, "export", "{tmp}/nothing", "--output", "{tmp}/model"], "no complete checkpoint"),
    "unknown command": ([*CLI, "trian"], "no command 'trian'"),
    "missing FASTA": ([*PREP, "build", "{tmp}/none.fa", "--out", "{tmp}/out"], "none.fa"),
    "not FASTA": ([*PREP, "build", "{tmp}/notes.txt", "--out", "{tmp}/out"], "notes.txt"),
    "an image": ([*PREP, "build", "{tmp}/image.fa", "--out", "{tmp}/out"], "image.fa"),
    "k too large": ([*PREP, "build", "{tmp}/good.fa", "--out", "{tmp}/out", "--k", "12"], "between 3 and 8"),
    "missing table": (
        [*CLI, "finetune", "--model", "{tmp}", "--output", "{tmp}/o", "--train", "{tmp}/a.csv", "--test", "{tmp}/c"],
        "a.csv",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("mistakes")
    write_prepared(tmp / "prepared", [[random_bases(np.random.default_rng(0), 300)]])
    (tmp / "notes.txt").write_text("Dear colleague,\nthe genome comes later.\n")
    (tmp / "image.fa").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    (tmp / "good.fa").write_text(">a\nACGTACGTACGTACGT\n")
    return tmp


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_exit_code_2(folder: Path, name: str) -> None:
    words, expected = MISTAKES[name]
    before = sorted(path.name for path in folder.iterdir())
    done = run_cli(*(word.replace("{tmp}", str(folder)) for word in words))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    assert done.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_bash_started_once_a_rank_is_the_rank(folder: Path, variables: dict[str, str]) -> None:
    """Under mpirun and srun it starts no launcher of its own: their variables, here incomplete, are read by it."""
    words = ["--preset", "tiny", "--data", folder / "prepared", "--output", folder / "run", "--window", "64"]
    command = ["bash", "launch_scripts/pretrain.sh", *map(str, words), "--global-batch", "4"]
    environment = {**clean_environment(), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and " is set, but " in done.stderr
    assert done.stdout == ""


def test_bash_finds_a_mistake_before_any_rank_starts(folder: Path) -> None:
    start = time.monotonic()
    command = [
        "bash",
        "launch_scripts/pretrain.sh",
        "--preset",
        "tiny",
        "--data",
        str(folder / "nothing"),
        "--output",
        "x",
    ]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "command", [[*CLI], [*CLI, "pretrain"], [*CLI, "export"], [*CLI, "finetune"], [*CLI, "gue"], [*PREP, "build"]]
)
def test_help_answers_at_once(command: list[str]) -> None:
    """In processor time, which other work on the machine does not lengthen; the best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_cli(*command, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0 and "usage" in done.stdout
    assert min(seconds) < 1
