"""Deletion of old checkpoints, and removal of the temporary files that a kill leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnabert_rm.checkpoint.run_folder import complete_steps, saved_steps, step_folder, step_of
from dnabert_rm.checkpoint.save import remove_leftovers, remove_old_checkpoints


def make_checkpoints(run: Path, *steps: int) -> None:
    for step in steps:
        step_folder(run, step).mkdir(parents=True)
        (step_folder(run, step) / "complete.json").write_text("{}")


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (0, 0, [100, 200, 300, 400, 500]),
        (2, 0, [400, 500]),
        (1, 0, [500]),
        (1, 200, [200, 400, 500]),
        (2, 300, [300, 400, 500]),
        (9, 0, [100, 200, 300, 400, 500]),
    ],
)
def test_the_last_and_every_nth_checkpoint_are_kept(
    tmp_path: Path, keep_last: int, keep_every: int, left: list[int]
) -> None:
    make_checkpoints(tmp_path, 100, 200, 300, 400, 500)
    remove_old_checkpoints(tmp_path, keep_last, keep_every)
    assert saved_steps(tmp_path) == complete_steps(tmp_path) == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_leftovers_of_kills_do_not_count_as_checkpoints_and_are_deleted(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 100)
    folder = tmp_path / "checkpoints"
    for name in (".step_00000200.tmp", ".step_00000050.old.tmp", ".converted.tmp"):
        (folder / name / "zero").mkdir(parents=True)
        (folder / name / "complete.json").write_text("{}")
    for path in (folder / ".latest.77.tmp", tmp_path / ".config.toml.77.tmp"):
        path.write_text("half")
    kept = [folder / "latest", folder / "step_00000300.damaged", tmp_path / "metrics.jsonl"]
    for path in kept:
        path.write_text("")
    assert saved_steps(tmp_path) == [100]
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000100", "step_00000300.damaged"]
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_00000012", 12),
        ("step_123456789", 123456789),
        ("step_12", None),
        (".step_00000012.tmp", None),
        ("step_00000012.damaged", None),
        ("latest", None),
    ],
)
def test_the_step_is_read_from_a_folder_name(name: str, step: int | None) -> None:
    assert step_of(Path("run") / name) == step
