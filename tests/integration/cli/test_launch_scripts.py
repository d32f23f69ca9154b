"""What the launch scripts pass on. That runs work with them is tested in `multiprocess` and `cluster`."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import numpy as np
from support import ROOT, clean_environment, random_bases, write_prepared


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
