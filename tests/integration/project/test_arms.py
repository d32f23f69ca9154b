"""`benchmarks/arms.py` from its list of arms to a table, pictures and a reference, with real runs of a few steps."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, random_bases

from data_prep.cli import main as data_prep
from dnabert_rm.cli.main import main as dnabert_rm

ARMS = """\
# Three masks.
* --data data --preset tiny --model.architecture modernbert --steps 4 --global-batch 4 --window 64 --validation.every 2
masks/fixed3 1 --masking fixed
masks/randommask 2,1 --validation.regions 4
masks/token 1 --masking token --data.overlap false
"""


def run_arms(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/arms.py", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four finished runs and their rows."""
    folder = tmp_path_factory.mktemp("arms")
    generator = np.random.default_rng(1)
    (folder / "genome.fa").write_text(f">a\n{random_bases(generator, 20_000)}\n>b\n{random_bases(generator, 5_000)}\n")
    words = ["build", folder / "genome.fa", "--out", folder / "data", "--k", "3", "--val-contigs", "b"]
    assert data_prep(list(map(str, words))) == 0
    (folder / "arms.txt").write_text(ARMS)
    printed = run_arms(folder, "run", "arms.txt", "--output", "runs", "--results", "rows.csv", "--slots", "1")
    started = [line.split()[1] for line in printed.splitlines() if line.endswith(": started")]
    assert started == ["masks/fixed3/1:", "masks/randommask/1:", "masks/token/1:", "masks/randommask/2:"]
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_validation(finished: Path) -> None:
    assert [(row["name"], row["steps"], row["tokens"]) for row in rows(finished)] == [
        (f"masks/{name}", str(steps), str(steps * 4 * 64))
        for name in ("fixed3/1", "randommask/1", "token/1", "randommask/2")
        for steps in (2, 4)
    ]
    assert all(1.5 < float(row["bits_5"]) < 2.5 and float(row["token_loss"]) > 3 for row in rows(finished))
    assert len({row["token_loss"] for row in rows(finished)}) == 8
    assert {row["name"] for row in rows(finished) if not row["markov_5"]} == {"masks/token/1"}


def test_arms_with_rows_are_not_run_again(finished: Path) -> None:
    before = (finished / "rows.csv").read_bytes()
    printed = run_arms(finished, "run", "arms.txt", "--output", "runs", "--results", "rows.csv")
    assert printed == "no arms left to run\n"
    assert (finished / "rows.csv").read_bytes() == before


def test_tables(finished: Path) -> None:
    *_, fixed, randommask, _ = run_arms(finished, "table", "--results", "rows.csv").splitlines()
    last = {row["name"]: row for row in rows(finished)}
    assert fixed.split(" | ")[:5] == ["| masks/fixed3", "4", "1", "never", last["masks/fixed3/1"]["token_loss"]]
    first, second = (float(last[f"masks/randommask/{seed}"]["bits_5"]) for seed in (1, 2))
    # The 0.975 quantile of Student's t with one degree of freedom is 12.706.
    half = 12.7062 * abs(first - second) / 2
    assert f" {(first + second) / 2:.4f} ± {half:.4f} " in randommask
    *_, same, other, _ = run_arms(finished, "table", "--results", "rows.csv", "--against", "masks/fixed3").splitlines()
    assert same.endswith(" | +0.0000" * 7 + " |")
    assert f" {first - float(last['masks/fixed3/1']['bits_5']):+.4f} | " in other, (
        "seeds that only one arm has don't count"
    )
    assert [line.split(" | ")[2] for line in (same, other)] == ["1", "1"]


def test_arms_with_other_steps_are_not_compared(finished: Path) -> None:
    lines = (finished / "rows.csv").read_text().splitlines()
    shorter = [line for line in lines if not line.startswith("masks/randommask/1,4,")]
    assert len(shorter) == len(lines) - 1
    (finished / "shorter.csv").write_text("\n".join(shorter) + "\n")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/arms.py", "table", "--results", "shorter.csv", "--against", "masks/fixed3"],
        cwd=finished, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "masks/randommask has other steps" in done.stderr


def test_arms_are_chosen_by_parts_of_their_names(finished: Path) -> None:
    words = ["--results", "rows.csv", "--match"]
    assert [line.split()[1] for line in run_arms(finished, "table", *words, "token", "fixed3/").splitlines()[2:]] == [
        "masks/fixed3",
        "masks/token",
    ]
    assert len(run_arms(finished, "table", *words, "masks/").splitlines()) == 5


def test_pictures(finished: Path) -> None:
    found = run_arms(finished, "pictures", "--results", "rows.csv", "--output", "pictures/masks").split()
    assert found == ["pictures/masks_curves.png", "pictures/masks_end.png"]
    assert all((finished / path).stat().st_size > 10_000 for path in found)


def test_the_reference_is_one_that_check_run_reads(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_arms(finished, "reference", "runs/masks/randommask", "--output", "reference")
    seeds = [str(finished / "reference" / f"seed_{seed}") for seed in (1, 2)]
    assert dnabert_rm(["check-run", str(finished / "runs/masks/randommask/1"), "--reference", *seeds]) == 0
    printed = capsys.readouterr().out
    assert "(seeds 1, 2); settings that differ: none" in printed
    assert printed.endswith("Largest difference from the reference run with the same seed: 0.\n")
    assert dnabert_rm(["check-run", str(finished / "runs/masks/fixed3/1"), "--reference", *seeds]) in (0, 1)
    assert "settings that differ: masking.policy is fixed, reference randommask" in capsys.readouterr().out
