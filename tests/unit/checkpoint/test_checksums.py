"""Checkpoint manifest: any change of the files is found and named, and no name in it points outside the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dnabert_rm.checkpoint.checksums import (
    CheckpointLayout,
    CheckpointManifest,
    find_damage,
    hash_own_files,
    is_inside,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from dnabert_rm.utils.errors import CheckpointError

FILES = {
    "state.json": b"{}",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": b"a" * 5000,
    "zero_pp_rank_1_mp_rank_00_optim_states.pt": b"b" * 5000,
    "offloaded_tensors/rank01/x.swp": b"c" * 100,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two ranks with its manifest; each rank hashed the files that it wrote."""
    folder = tmp_path / "step_00000010"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shares = [hash_own_files(folder, rank, 2) for rank in range(2)]
    assert sorted(shares[1]) == ["offloaded_tensors/rank01/x.swp", "zero_pp_rank_1_mp_rank_00_optim_states.pt"]
    write_checkpoint_manifest(folder, CheckpointManifest(CheckpointLayout(2, 3, False), shares[0] | shares[1]))
    return folder


def damage(folder: Path, num_ranks: int = 1) -> str | None:
    manifest = read_checkpoint_manifest(folder)
    found = [find_damage(folder, manifest, rank, num_ranks) for rank in range(num_ranks)]
    return next((text for text in found if text), None)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def point_elsewhere(path: Path) -> None:
    """Replace a file by a link to the same content outside, which could change after the check."""
    outside = path.parents[1] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_an_undamaged_checkpoint_passes_for_any_number_of_ranks(folder: Path, num_ranks: int) -> None:
    assert read_checkpoint_manifest(folder).layout == CheckpointLayout(2, 3, False)
    assert read_checkpoint_manifest(folder).num_bytes == sum(map(len, FILES.values()))
    assert damage(folder, num_ranks) is None


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 1), "has 1 bytes, but"),
        (flip_a_bit, "its SHA-256 does not match"),
        (point_elsewhere, "is a link to another location"),
        (lambda path: (path.unlink(), path.mkdir()), "is missing"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), ""),
    ],
)
def test_any_change_is_found_and_named(folder: Path, num_ranks: int, name: str, change, fault: str) -> None:
    change(folder / name)
    found = damage(folder, num_ranks)
    assert found and found.startswith(f"{folder / name} ") and fault in found


def test_a_file_that_deepspeed_would_read_but_the_manifest_lacks_is_found(folder: Path) -> None:
    (folder / "notes.txt").write_text("harmless")
    assert damage(folder) is None
    (folder / "zero_pp_rank_2_mp_rank_00_optim_states.pt").write_bytes(b"x")
    assert "zero_pp_rank_2_mp_rank_00_optim_states.pt is not in complete.json" in str(damage(folder))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../state.json", "a/../../b", "..", ".", "", "a//b", "./a", "a\\..\\b"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    assert not is_inside(name)
    content = json.loads((folder / "complete.json").read_text())
    content["files"][name] = content["files"]["state.json"]
    (folder / "complete.json").write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"complete\.json: is damaged \(the file name .* points outside the folder\)"
    ):
        read_checkpoint_manifest(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{}", "[" * 100_000, '{"format_version": 2}', '{"format_version": 1, "world_size": 0}', "\xff"],
)
def test_an_invalid_manifest_is_refused_in_one_line(folder: Path, content: str) -> None:
    (folder / "complete.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"complete\.json: is damaged") as caught:
        read_checkpoint_manifest(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_not_complete(folder: Path) -> None:
    (folder / "complete.json").unlink()
    with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
        read_checkpoint_manifest(folder)
