"""Damaged, deleted, malicious and unwritable checkpoints: a run behaves as docs/training.md says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import differences
from support import (
    on_ranks,
    random_bases,
    read_metrics,
    rewrite_manifest,
    run_ranks,
    start_ranks,
    wait_for,
    write_prepared,
)

from dnabert_rm.checkpoint.checksums import COMPLETE_NAME
from dnabert_rm.checkpoint.run_folder import saved_steps, step_folder
from dnabert_rm.utils.errors import UserError

FLAGS = shlex.split(
    "--preset tiny --model.num_layers 1 --model.hidden_size 64 --steps 12 --global-batch 8 --window 66 --workers 0 "
    "--log-every 1 --save-every 4 --train.keep_last 0 --phase-ends 2,4,6,8,12"
)
OPTIMIZER = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL = "zero_pp_rank_0_mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)] for _ in range(3)], k=4)
    return [*FLAGS, "--data", folder]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two ranks with checkpoints of steps 4, 8 and 12."""
    run = tmp_path_factory.mktemp("finished") / "run"
    run_ranks(2, *flags, "--output", run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


class Bomb:
    """Unpickling this object makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_bomb(path: Path) -> None:
    torch.save({"module": Bomb(path.parents[3] / "exploded")}, path)
    rewrite_manifest(path.parent)


DAMAGES = {
    "one flipped bit": (lambda folder: flip_a_bit(folder / OPTIMIZER), f"{OPTIMIZER} is damaged (its SHA-256"),
    "one rank's file cut short": (lambda folder: os.truncate(folder / OPTIMIZER, 999), f"{OPTIMIZER} has 999 bytes"),
    "a file missing": (lambda folder: (folder / MODEL).unlink(), f"{MODEL} is missing"),
    "no manifest": (lambda folder: (folder / COMPLETE_NAME).unlink(), "is not a complete checkpoint"),
    "code in the optimizer": (lambda folder: write_bomb(folder / OPTIMIZER), "holds more than tensors"),
    "code in the model": (lambda folder: write_bomb(folder / MODEL), "holds more than tensors"),
}


def find_starts(ranks, requests: list[tuple[str, Path]]) -> list[tuple[str, str]]:
    """Return for each --resume and run folder the chosen checkpoint or the error, and what this rank prints."""
    from dnabert_rm.checkpoint.resume import find_checkpoint

    found = []
    for resume, run in requests:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            try:
                chosen = str(find_checkpoint(resume, run, ranks))
            except UserError as error:
                chosen = f"error: {error}"
        found.append((chosen, printed.getvalue()))
    return found


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(finished: Path, tmp_path: Path) -> None:
    """Both of two ranks choose the same checkpoint for all `DAMAGES`, and rank 0 reports the damage in one line."""
    runs = {name: shutil.copytree(finished, tmp_path / name / "run") for name in DAMAGES}
    for name, (apply_damage, _) in DAMAGES.items():
        apply_damage(step_folder(runs[name], 12))
    requests = [("auto", run) for run in runs.values()]
    found, others = on_ranks(2, find_starts, requests)
    assert [chosen for chosen, _ in found] == [chosen for chosen, _ in others]
    for (name, run), (chosen, printed) in zip(runs.items(), found, strict=True):
        assert chosen == str(step_folder(run, 8)), name
        assert printed.count("\n") == 1 and DAMAGES[name][1] in printed and "resuming from step 8" in printed
        assert saved_steps(run) == [4, 8] and (run / "checkpoints" / "step_00000012.damaged").is_dir()
        assert (run / "checkpoints" / "latest").read_text() == "step_00000008\n"
        assert not (tmp_path / name / "exploded").exists()
    assert not any(printed for _, printed in others)


def test_the_newest_undamaged_checkpoint_is_chosen(finished: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(finished, tmp_path / name)

    without, wrong, all_damaged, two_damaged, early = map(copy, ("without", "wrong", "all", "two", "early"))
    (without / "checkpoints" / "latest").unlink()
    (wrong / "checkpoints" / "latest").write_text("step_00000099\n")
    for step in (4, 8, 12):
        flip_a_bit(step_folder(all_damaged, step) / "probe.npz")
    for step in (8, 12):
        flip_a_bit(step_folder(two_damaged, step) / "state.json")
    for step in (8, 12):
        shutil.rmtree(step_folder(early, step))
    new, damaged = tmp_path / "new", str(step_folder(all_damaged, 8))
    cases: list[tuple[str, Path, str]] = [
        ("auto", without, str(step_folder(without, 12))),
        ("auto", wrong, str(step_folder(wrong, 12))),
        ("auto", two_damaged, str(step_folder(two_damaged, 4))),
        ("auto", new, "None"),
        ("never", new, "None"),
        ("never", finished, "--resume is never; choose another --output"),
        (str(finished), new, str(step_folder(finished, 12))),
        (str(step_folder(finished, 4)), new, str(step_folder(finished, 4))),
        (str(step_folder(finished, 4)), finished, "already has checkpoints (step 12)"),
        (str(step_folder(early, 4)), early, str(step_folder(early, 4))),
        (str(step_folder(finished, 12)), early, "already has checkpoints (step 4)"),
        ("auto", all_damaged, "(2 others are damaged too); no usable checkpoint is left"),
        (damaged, new, "no usable checkpoint is left"),
        (str(tmp_path / "nowhere"), new, "holds no checkpoint; pass a run folder"),
    ]
    [found] = on_ranks(1, find_starts, [(resume, run) for resume, run, _ in cases])
    for (resume, run, expected), (chosen, _) in zip(cases, found, strict=True):
        assert expected == chosen or ("error" in chosen and expected in chosen), (resume, run, chosen)
        assert "\n" not in chosen
    assert saved_steps(all_damaged) == [4, 8, 12], "a folder without a usable checkpoint must not be changed"


def test_a_run_with_a_damaged_checkpoint_gives_the_same_metrics(run: Path, finished: Path, flags) -> None:
    flip_a_bit(step_folder(run, 12) / OPTIMIZER)
    printed = run_ranks(2, *flags, "--output", run)
    assert "resuming at step 8 of 12" in printed
    assert differences(run, finished) == []


def test_a_new_run_resumes_a_checkpoint_with_other_free_settings(finished: Path, flags, tmp_path: Path) -> None:
    words = [*flags, "--resume", step_folder(finished, 4), "--output", tmp_path / "new", "--save-every", 6]
    run_ranks(2, *words, "--train.keep_every", 6, "--train.keep_last", 1)
    rows, expected = read_metrics(tmp_path / "new"), read_metrics(finished)[4:]
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]
    assert saved_steps(tmp_path / "new") == [6, 12]
    assert rows[2]["save_seconds"] > 0 and rows[1]["save_seconds"] is None


def test_a_changed_mask_schedule_is_refused(finished: Path, flags) -> None:
    printed = run_ranks(2, *flags, "--output", finished, "--phase-ends", "2,4,6,9,12", codes=[2, 2])
    [line] = [line for line in printed.splitlines() if "error" in line]
    assert "masking.phase_ends was [2.0, 4.0, 6.0, 8.0, 12.0] and is [2.0, 4.0, 6.0, 9.0, 12.0]" in line
    assert "--allow-changes" in line


def evil_name(folder: Path) -> None:
    """Give a parameter a name that leads out of the folder that the converter makes for it."""
    content = torch.load(folder / MODEL, weights_only=False)
    content["param_shapes"] = [{"../../../../escaped": next(iter(content["param_shapes"][0].values()))}]
    torch.save(content, folder / MODEL)


def evil_text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


MALICIOUS = {
    "a parameter name that leads out of the folder": (evil_name, "has a parameter '../../../../escaped'"),
    "another shape": (lambda folder: shutil.copy(folder / MODEL, folder / OPTIMIZER), "can't be converted"),
    "state of another kind": (evil_text("state.json", '{"step": "x"}'), "state.json: cannot be read"),
    "invalid configuration": (evil_text("config.toml", "[model"), "config.toml: cannot be read"),
    "code to fetch": (
        evil_text("config.json", '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}'),
        "config.json: no hidden_size; choose a BERT or ModernBERT model",
    ),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_checkpoint_ends_the_run_in_one_line(run: Path, flags, name: str) -> None:
    """The manifest matches the changed files, and another number of ranks requires a conversion."""
    for step in (4, 8):
        shutil.rmtree(step_folder(run, step))
    folder = step_folder(run, 12)
    (folder / "evil.py").write_text(f"open({str(run.parent / 'exploded')!r}, 'w')\nclass Evil: pass\n")
    before = sorted(path.name for path in run.parent.iterdir())
    MALICIOUS[name][0](folder)
    rewrite_manifest(folder)
    printed = run_ranks(1, *flags, "--output", run, codes=[2])
    lines = [line for line in printed.splitlines() if line.strip()]
    assert [line for line in lines if "error" in line] == lines[-1:], printed
    assert MALICIOUS[name][1] in lines[-1]
    assert sorted(path.name for path in run.parent.iterdir()) == before
    assert not any((run / "checkpoints").glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5.5 MB: two checkpoints of 1.7 MB fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5500k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_before_anything_is_written(small_disk: Path, flags, finished: Path) -> None:
    run = small_disk / "run"
    printed = run_ranks(2, *flags, "--output", run, codes=[2, 2])
    [line] = [line for line in printed.splitlines() if "error" in line]
    assert "a checkpoint takes about 0.002" in line and "free space" in line
    assert saved_steps(run) == [4, 8] and not any((run / "checkpoints").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    run_ranks(2, *flags, "--output", run)
    assert differences(run, finished) == []


def test_a_failed_write_ends_the_run_and_keeps_the_earlier_checkpoints(flags, tmp_path: Path, finished) -> None:
    """After the first checkpoint rank 1 can't write files over 100 kB, which fails like a full disk."""
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = start_ranks(2, [*flags, "--output", run], log)
    while not saved_steps(run) and all(process.is_alive() for process in ranks):
        pass
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    codes = wait_for(ranks)
    assert codes == [2, 2]  # the ranks learn of it together
    errors = [line for rank in (0, 1) for line in (log / f"{rank}.txt").read_text().splitlines() if "error" in line]
    assert len(errors) == 1, errors
    assert "rank 1: " in errors[0] and "cannot be written" in errors[0] and "free space" in errors[0]
    assert saved_steps(run)[0] == 4 and not any((run / "checkpoints").glob(".*.tmp"))
    run_ranks(2, *flags, "--output", run)
    assert not any((run / "checkpoints").glob(".*.tmp"))
    assert differences(run, finished) == []


def test_the_manifest_holds_what_the_documentation_says(finished: Path) -> None:
    manifest = json.loads((step_folder(finished, 12) / COMPLETE_NAME).read_text())
    assert {name: manifest[name] for name in ("format_version", "world_size", "zero_stage", "nvme")} == {
        "format_version": 1,
        "world_size": 2,
        "zero_stage": 3,
        "nvme": False,
    }
    on_disk = {path.name for path in step_folder(finished, 12).iterdir()} - {COMPLETE_NAME}
    assert set(manifest["files"]) == on_disk
    assert {"state.json", "config.toml", "config.json", "tokenizer.json", "probe.npz", MODEL, OPTIMIZER} <= on_disk
