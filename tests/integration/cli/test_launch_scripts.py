"""What the launch scripts pass on. That runs work with them is tested in `multiprocess` and `cluster`."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, clean_environment, random_bases, write_prepared

RECORD = '#!/bin/sh\n{ printf "%s\\t" "${0##*/}" "$@"; echo; } >>"$CALLS"\n'
"""A program that appends its name and arguments to a file."""


def test_mpirun_gets_the_variables_that_ranks_on_other_machines_need(tmp_path: Path) -> None:
    """A program in place of mpirun prints its arguments."""
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 4000)]], k=3)
    passed = {"AWS_SECRET_ACCESS_KEY": "a", "GOOGLE_CLOUD_PROJECT": "b", "FSSPEC_S3_ENDPOINT_URL": "c"}
    passed |= {"MLFLOW_TRACKING_URI": "d", "WANDB_MODE": "offline", "https_proxy": "http://e", "HF_TOKEN": "f"}
    variables = clean_environment()
    done = subprocess.run(
        ["bash", ROOT / "launch_scripts/pretrain_mpi.sh", "-n", "2", "--", "--preset", "tiny", "--steps", "3",
         "--global-batch", "4", "--window", "32", "--data", tmp_path / "prepared", "--output", tmp_path / "run"],
        env={**variables, **passed, "UNRELATED": "1", "PATH": f"{program.parent}:{variables['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    exported = {name for flag, name in itertools.pairwise(words) if flag == "-x"}
    assert set(passed) | {"PATH"} <= exported and "UNRELATED" not in exported


def run_script(
    folder: Path, name: str, *words: str | Path, programs: dict[str, str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a launch script with `programs` (name to text) in place of those on PATH."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for program, text in programs.items():
        (bin_folder / program).write_text(text)
        (bin_folder / program).chmod(0o755)
    environment = clean_environment()
    environment |= {"PATH": f"{bin_folder}:{environment['PATH']}", "CALLS": str(folder / "calls"), **variables}
    command = ["bash", ROOT / "launch_scripts" / name, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def calls(folder: Path) -> list[list[str]]:
    """Return the words of each call of `RECORD`."""
    return [line.split("\t")[:-1] for line in (folder / "calls").read_text().splitlines()]


def write_export(folder: Path, step: int) -> None:
    """Write what an exported folder says about its checkpoint, as `dnabert-rm export` does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "pretraining.json").write_text(json.dumps({"step": step, "config": {"a": {"step": 7}}}, indent=1))


def test_reproduce_masking_passes_each_validation_contig_as_a_word(tmp_path: Path) -> None:
    programs = dict.fromkeys(("python", "deepspeed", "dnabert-rm"), RECORD)
    done = run_script(
        tmp_path, "reproduce_masking.sh", "my genome.fa", tmp_path / "o ut", "token", programs=programs,
        VAL_CONTIGS="chrXIV chrXV",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    build, *_, report = calls(tmp_path)
    assert build[:5] == ["python", "-m", "data_prep", "build", "my genome.fa"]
    assert build[build.index("--val-contigs") + 1 :] == ["chrXIV", "chrXV"]
    assert report[:4] == ["dnabert-rm", "analyze", "report", f"{tmp_path}/o ut/runs/token"]


def test_reproduce_masking_refuses_an_export_of_an_earlier_checkpoint(tmp_path: Path) -> None:
    programs = dict.fromkeys(("python", "deepspeed", "dnabert-rm"), RECORD)
    write_export(tmp_path / "models" / "token", 500)
    (tmp_path / "runs" / "token" / "checkpoints" / "step_00001000").mkdir(parents=True)
    done = run_script(tmp_path, "reproduce_masking.sh", "genome.fa", tmp_path, "token", programs=programs)
    assert done.returncode == 2
    assert "is the model after 500 steps, but the last checkpoint of" in done.stderr.splitlines()[-1]
    assert "dnabert-rm" not in {name for name, *_ in calls(tmp_path)}


def test_reproduce_finetuning_trains_every_arm_and_refuses_a_folder_without_models(tmp_path: Path) -> None:
    words = ["reproduce_finetuning.sh", str(tmp_path), "GUE", "--seeds", "1"]
    done = run_script(tmp_path, *words, programs={"dnabert-rm": RECORD})
    assert done.returncode == 2 and done.stderr == f"{tmp_path}/models: no models; run reproduce_masking.sh first\n"
    for arm in ("fixed14", "token"):
        (tmp_path / "models" / arm).mkdir(parents=True)
    assert run_script(tmp_path, *words, programs={"dnabert-rm": RECORD}).returncode == 0
    outputs = [(Path(call[call.index("--output") + 1]).name, "--non-overlapping" in call) for call in calls(tmp_path)]
    assert outputs == [("fixed14", False), ("token", False), ("token", True)]


@pytest.mark.parametrize("last", [90, 100])
def test_finetune_gue_uses_an_export_of_the_last_checkpoint_only(tmp_path: Path, last: int) -> None:
    run, output = tmp_path / "r un", tmp_path / "out"
    write_export(output / "model", 90)
    for step in (80, last):
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    done = run_script(tmp_path, "finetune_gue.sh", run, "GUE", output, "--seeds", "1", programs={"dnabert-rm": RECORD})
    if last == 90:
        expected = ["dnabert-rm", "gue", "--model", f"{output}/model", "--data", "GUE", "--output", str(output)]
        assert done.returncode == 0 and calls(tmp_path) == [[*expected, "--seeds", "1"]]
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"after 90 steps, but the last checkpoint of {run} is after 100 steps" in done.stderr
        assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "saves", "requeued"),
    [(75, 2, False, True), (75, 3, False, False), (138, 3, False, False), (75, 3, True, True), (70, 0, False, False)],
)
def test_the_slurm_script_requeues_without_a_new_checkpoint_only_three_times(
    tmp_path: Path, code: int, restarts: int, saves: bool, requeued: bool
) -> None:
    """A program in place of srun ends with the exit code of the ranks. The checkpoints are on another disk."""
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 4000)]], k=3)
    run = tmp_path / "run"
    (tmp_path / "scratch" / "step_00000001").mkdir(parents=True)
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    save = f"mkdir '{run}/checkpoints/step_00000002'\n" if saves else ""
    done = run_script(
        tmp_path, "pretrain.slurm", "--preset", "tiny", "--steps", "3", "--global-batch", "4", "--window", "32",
        "--data", tmp_path / "prepared", "--output", run,
        programs={"srun": f"#!/bin/sh\n{save}exit {code}\n", "scontrol": RECORD},
        SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="17", SLURM_RESTART_COUNT=str(restarts),
    )  # fmt: skip
    if requeued:
        assert done.returncode == 0 and calls(tmp_path) == [["scontrol", "requeue", "17"]], done.stderr
    else:
        assert done.returncode == code and not (tmp_path / "calls").exists(), done.stderr
    if not requeued and code != 70:
        assert "stopped without a new checkpoint, after 3 requeues; not requeued" in done.stderr.splitlines()[-1]
