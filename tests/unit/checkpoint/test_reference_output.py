"""Reference output read from a file: no pickle is loaded, and wrong arrays are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dnabert_rm.checkpoint.reference_output import ReferenceOutput, load_reference_output, save_reference_output
from dnabert_rm.utils.errors import CheckpointError

VALID = {
    "input_ids": np.full((2, 9), 5),
    "positions": np.arange(8),
    "logits": np.zeros((8, 20), np.float32),
    "precision": "fp32",
    "device": "cpu",
}


class Bomb:
    """Unpickling this object makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip(tmp_path: Path) -> None:
    save_reference_output(tmp_path / "probe.npz", ReferenceOutput(**VALID))
    output = load_reference_output(tmp_path / "probe.npz")
    assert output.precision == "fp32" and np.array_equal(output.input_ids, VALID["input_ids"])


@pytest.mark.parametrize("name", ["input_ids", "positions", "precision"])
def test_a_pickle_is_not_loaded(tmp_path: Path, name: str) -> None:
    bomb = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "probe.npz", allow_pickle=True, **(VALID | {name: bomb}))
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
def test_wrong_arrays_are_refused(tmp_path: Path, change: dict) -> None:
    np.savez(tmp_path / "probe.npz", **(VALID | change))
    refused(tmp_path / "probe.npz")


def array_bytes() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(3))
    return out.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"nothing", array_bytes()])
def test_a_file_without_arrays_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "probe.npz").write_bytes(content)
    refused(tmp_path / "probe.npz")


def test_a_member_that_is_not_an_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "probe.npz", "w") as archive:
        archive.writestr("input_ids.npy", b"no array")
    refused(tmp_path / "probe.npz")


def refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"probe\.npz: cannot be read") as caught:
        load_reference_output(path)
    assert "\n" not in str(caught.value)
