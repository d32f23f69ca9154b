"""A user's mistake is one line that says what to change, and exit code 2; never a traceback."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, random_bases, run_cli, write_prepared
from tiny_models import save_bert
from transformers import BertForMaskedLM, BertForSequenceClassification

PRETRAIN = ["launch_scripts/pretrain.sh", "--preset", "tiny", "--output", "{tmp}/run"]
DATA = ["--data", "{tmp}/prepared"]
CLI, PREP = ["-m", "dnabert_rm.cli.main"], ["-m", "data_prep"]
TABLES = ["--output", "{tmp}/o", "--dev", "{tmp}/dev.csv", "--test", "{tmp}/dev.csv"]
FINETUNE = [*CLI, "finetune", "--model", "{tmp}/model", *TABLES, "--train"]
RANK_ALONE = (
    "import os, sys; os.environ['RANK'] = '3'; from dnabert_rm.cli.main import run_one; "
    "sys.exit(run_one('pretrain', 'pretrain.sh', sys.argv[1:]))"
)

MISTAKES = {
    "unknown flag": ([*PRETRAIN, *DATA, "--stepps", "3"], "unrecognized arguments: --stepps 3"),
    "abbreviated flag": ([*PRETRAIN, *DATA, "--step", "3"], "unrecognized arguments: --step 3"),
    "not a number": ([*PRETRAIN, *DATA, "--steps", "many"], "--steps many: must be of type int"),
    "unknown preset": ([*CLI, "check", "--preset", "huge"], "choose one of tiny, mini"),
    "no data": ([*PRETRAIN], "pass --data DIR"),
    "missing data": ([*PRETRAIN, "--data", "{tmp}/nothing"], "manifest.json: no such file"),
    "window over positions": ([*PRETRAIN, *DATA, "--window", "1024"], "more than model.max_positions (512)"),
    "no window fits": ([*PRETRAIN, *DATA, "--window", "500"], "lower --window"),
    "phases out of order": ([*PRETRAIN, *DATA, "--window", "64", "--phase-ends", "9,5"], "positive and increasing"),
    "unknown policy": ([*PRETRAIN, *DATA, "--window", "64", "--masking", "all"], "one of randommask"),
    "a weight of repeats, and data without them": (
        [*PRETRAIN, *DATA, "--window", "64", "--data.repeat_weight", "0.1"],
        "prepared: has no record of soft-masked bases, which data.repeat_weight needs; build the data again with "
        "--record-soft-mask",
    ),
    "a weight above 1": (
        [*CLI, "check", *PRETRAIN[1:], *DATA, "--data.repeat_weight", "1.5"],
        "data.repeat_weight 1.5: must be at most 1",
    ),
    "missing DeepSpeed file": ([*PRETRAIN, *DATA, "--window", "64", "--ds-config", "zero9"], "zero3"),
    "stage 0 in bf16": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "4", "--precision", "bf16", "--ds-config", "zero0"],
        "choose --ds-config zero1",
    ),
    "batch does not divide": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "10", "--micro-batch", "4"],
        "change one of them",
    ),
    "batch does not divide by the ranks": (
        [*CLI, "check", *PRETRAIN[1:], *DATA, "--window", "64", "--global-batch", "4", "--gpus", "3"],
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
    "unknown command": ([*CLI, "trian"], "unknown command 'trian'"),
    "missing FASTA": ([*PREP, "build", "{tmp}/none.fa", "--out", "{tmp}/out"], "none.fa"),
    "not FASTA": ([*PREP, "build", "{tmp}/notes.txt", "--out", "{tmp}/out"], "notes.txt"),
    "an image": ([*PREP, "build", "{tmp}/image.fa", "--out", "{tmp}/out"], "image.fa"),
    "k too large": ([*PREP, "build", "{tmp}/good.fa", "--out", "{tmp}/out", "--k", "12"], "between 3 and 8"),
    "FASTQ": ([*PREP, "build", "{tmp}/reads.fastq", "--out", "{tmp}/out"], "starts with '@' like FASTQ"),
    "protein": ([*PREP, "build", "{tmp}/protein.fa", "--out", "{tmp}/out"], "use DNA, not protein"),
    "a contig twice": ([*PREP, "build", "{tmp}/twice.fa", "--out", "{tmp}/out"], "line 3: a second record"),
    "a download cut short": ([*PREP, "build", "{tmp}/cut.fa.gz", "--out", "{tmp}/out"], "download the file again"),
    "held-out contig that is not there": (
        [*PREP, "build", "{tmp}/good.fa", "--out", "{tmp}/out", "--val-contigs", "b"],
        "did you mean 'a'",
    ),
    "too little to split": (
        [*PREP, "build", "{tmp}/good.fa", "--out", "{tmp}/out", "--val-fraction", "0.1"],
        "lower --block-bases",
    ),
    "too few shards: none of the split": (
        [*CLI, "check", *PRETRAIN[1:], *DATA, "--window", "64", "--data.split", "test"],
        "no shards for split 'test'",
    ),
    "a genome in place of shards": ([*PRETRAIN, "--data", "{tmp}/good.fa"], "good.fa: is a file; pass a folder"),
    "a model of another k": (
        [*PRETRAIN, *DATA, "--window", "20", "--init-from", "{tmp}/model", "--global-batch", "4"],
        "build the data with the model's k",
    ),
    "resume of no run": (
        [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "4", "--resume", "{tmp}/prepared"],
        "holds no checkpoint",
    ),
    "missing column": ([*FINETUNE, "{tmp}/seq.csv"], "seq.csv:1: no column 'sequence' (found: 'seq', 'label')"),
    "FASTA in place of a table": ([*FINETUNE, "{tmp}/good.fa"], "columns are separated by commas or tabs"),
    "a compressed table": ([*FINETUNE, "{tmp}/cut.fa.gz"], "uncompressed"),
    "a letter that is no nucleotide": ([*FINETUNE, "{tmp}/letter.csv"], "letter.csv:3: 'E' at base 4"),
    "one class": ([*FINETUNE, "{tmp}/class.csv"], "at least two classes are needed"),
    "predicting with a model that has no head": (
        [*CLI, "predict", "--model", "{tmp}/model", "--input", "{tmp}/good.fa", "--output", "{tmp}/p.csv"],
        "that `dnabert-rm finetune` wrote",
    ),
    "predicting with the folder above the model": (
        [*CLI, "predict", "--model", "{tmp}/above", "--input", "{tmp}/good.fa", "--output", "{tmp}/p.csv"],
        "above: it has no config.json; pass {tmp}/above/model",
    ),
    "predicting with a model that is not there": (
        [*CLI, "predict", "--model", "{tmp}/nothing", "--input", "{tmp}/good.fa", "--output", "{tmp}/p.csv"],
        "no such folder; pass the model/ folder that `dnabert-rm finetune` wrote",
    ),
    "fine-tuning a model that is not there": (
        [*CLI, "finetune", "--model", "{tmp}/nothing", "--output", "{tmp}/o", "--train", "{tmp}/good.csv", "--test",
         "{tmp}/dev.csv"],
        "no such folder; pass a folder that `dnabert-rm export` wrote",
    ),
    "missing table": (
        [*CLI, "finetune", "--model", "{tmp}/model", "--output", "{tmp}/o", "--train", "{tmp}/a.csv", "--test",
         "{tmp}/c"],
        "a.csv",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("mistakes")
    rng = np.random.default_rng(0)
    write_prepared(tmp / "prepared", [[random_bases(rng, 300)]])
    (tmp / "notes.txt").write_text("Dear colleague,\nthe genome comes later.\n")
    (tmp / "image.fa").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    texts = {
        "good.fa": ">a\nACGTACGTACGTACGT\n",
        "reads.fastq": "@r\nACGT\n+\nIIII\n",
        "protein.fa": ">p\nMKVLAAGIVGLCAKAYRQWERTY\n",
        "twice.fa": ">a\nACGT\n>a\nACGT\n",
        "good.csv": "sequence,label\nACGTACGT,1\nACGTTTTT,0\n",
        "dev.csv": "sequence,label\nACGTAAAA,1\nACGTTTAA,0\n",
        "seq.csv": "seq,label\nACGTACGT,1\n",
        "class.csv": "sequence,label\nACGTACGT,1\nACGTTTTT,1\n",
        "letter.csv": "sequence,label\nACGTACGT,1\nACGE,0\n",
    }
    for name, text in texts.items():
        (tmp / name).write_text(text)
    (tmp / "cut.fa.gz").write_bytes(gzip.compress(b">a\n" + bytes(random_bases(rng, 9999), "ascii"))[:-20])
    save_bert(tmp / "model", BertForMaskedLM)
    save_bert(tmp / "above" / "model", BertForSequenceClassification)
    return tmp


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_exit_code_2(folder: Path, name: str) -> None:
    words, expected = MISTAKES[name]
    before = sorted(path.name for path in folder.iterdir())
    done = run_cli(*(word.replace("{tmp}", str(folder)) for word in words))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert expected.replace("{tmp}", str(folder)) in lines[0]
    assert done.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == before, "something was left behind"


READ_ONLY = {
    "build": [*PREP, "build", "{tmp}/good.fa", "--out", "{tmp}/locked/out"],
    "train-bpe": [*PREP, "train-bpe", "{tmp}/good.fa", "--out", "{tmp}/locked/bpe.model"],
    "simulate": [*PREP, "simulate", "--out", "{tmp}/locked/out", "--bases", "20000", "--rows", "2"],
    "pretrain": [*PRETRAIN, *DATA, "--window", "64", "--global-batch", "4", "--output", "{tmp}/locked/run"],
    "finetune": [*FINETUNE, "{tmp}/good.csv", "--output", "{tmp}/locked/o"],
    "predict": [
        *CLI, "predict", "--model", "{tmp}/classifier", "--input", "{tmp}/good.fa", "--output", "{tmp}/locked/p.csv",
    ],
    "analyze": [*CLI, "analyze", "masking", "--output", "{tmp}/locked/m.png"],
}  # fmt: skip


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[list[str]]:
    """Words before a command that make permissions bind; `folder`/locked can't be written then.

    They don't bind for root, who has the capability to override them: setpriv takes it away.
    """
    (folder / "locked").mkdir(mode=0o555)
    words = [] if os.geteuid() else ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    tried = subprocess.run([*words, "touch", folder / "locked/x"], capture_output=True, text=True, check=False)
    if tried.returncode != 1 or "Permission denied" not in tried.stderr:
        (folder / "locked/x").unlink(missing_ok=True)
        pytest.skip("permissions don't bind for this user, and setpriv can't take the capability away")
    save_bert(folder / "classifier", BertForSequenceClassification)
    yield words
    (folder / "locked").chmod(0o755)


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_folder_that_cannot_be_written(folder: Path, locked: list[str], name: str) -> None:
    command = [*locked, sys.executable, *(word.replace("{tmp}", str(folder)) for word in READ_ONLY[name])]
    environment = clean_environment()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(folder / "locked") in done.stderr
    assert done.stdout == ""
    assert list((folder / "locked").iterdir()) == []


WIDE = {
    "finetune": [*FINETUNE, "{tmp}/many.csv", "--model", "{tmp}/wide", "--max-steps", "1"],
    "predict": [*CLI, "predict", "--model", "{tmp}/wide", "--input", "{tmp}/many.csv", "--output", "{tmp}/p.csv"],
    "embed": [*CLI, "embed", "--model", "{tmp}/wide", "--input", "{tmp}/many.csv", "--output", "{tmp}/e.npy"],
}


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    """1,024 rows of 24 tokens, and a model with so wide a layer that all of them at once take 12 GiB."""
    rng = np.random.default_rng(1)
    rows = [f"{random_bases(rng, 24)},{row % 2}" for row in range(1024)]
    (folder / "many.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    sizes = {"num_hidden_layers": 1, "intermediate_size": 2**17}
    save_bert(folder / "wide", BertForSequenceClassification, problem_type="single_label_classification", **sizes)
    return folder


@pytest.mark.parametrize("name", WIDE)
def test_out_of_memory_names_the_batch_size(wide: Path, name: str) -> None:
    words = [word.replace("{tmp}", str(wide)) for word in WIDE[name]]
    limited = ["bash", "-c", f'ulimit -v {10 * 2**20}; exec "$@"', "limited", sys.executable]
    command = [*limited, *words, "--batch-size", "1024"]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"dnabert-rm {name}: error: out of memory (1" in last and " GiB requested); lower --batch-size" in last
    assert "Traceback" not in done.stderr and done.stdout == ""
    # A fine-tuning that had begun leaves its curves, and no results.
    assert not {"scores.json", "p.csv", "e.npy"} & {path.name for path in wide.rglob("*")}


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
