"""A probe from a file: no pickle, and arrays that are those of a probe."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dnabert_rm.checkpoint.reference_output import ReferenceOutput, load_reference_output, save_reference_output
from dnabert_rm.utils.errors import CheckpointError

GOOD = {"input_ids": np.full((2, 9), 5), "positions": np.arange(8), "logits": np.zeros((8, 20), np.float32),
        "precision": "fp32", "device": "cpu"}  # fmt: skip


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip(tmp_path: Path) -> None:
    save_reference_output(tmp_path / "probe.npz", ReferenceOutput(**GOOD))
    probe = load_reference_output(tmp_path / "probe.npz")
    assert probe.precision == "fp32" and np.array_equal(probe.input_ids, GOOD["input_ids"])


@pytest.mark.parametrize("name", ["input_ids", "positions", "precision"])
def test_a_pickle_in_a_probe_does_nothing(tmp_path: Path, name: str) -> None:
    bomb = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "probe.npz", allow_pickle=True, **(GOOD | {name: bomb}))
    refused(tmp_path / "probe.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": np.zeros((2, 9))},
        {"input_ids": np.full((2, 9), 20)},
        {"input_ids": np.full((2, 9), -1)},
        {"positions": np.arange(8) + 11},
        {"positions": np.arange(7)},
        {"logits": np.zeros(20, np.float32)},
        {"precision": "fp4"},
    ],
)
def test_arrays_that_are_no_probe_are_refused(tmp_path: Path, change: dict) -> None:
    np.savez(tmp_path / "probe.npz", **(GOOD | change))
    refused(tmp_path / "probe.npz")


def array_bytes() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(3))
    return out.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"nothing", array_bytes()])
def test_a_file_that_is_no_probe_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "probe.npz").write_bytes(content)
    refused(tmp_path / "probe.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "probe.npz", "w") as archive:
        archive.writestr("input_ids.npy", b"no array")
    refused(tmp_path / "probe.npz")


def refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"probe\.npz: cannot be read") as caught:
        load_reference_output(path)
    assert "\n" not in str(caught.value)
