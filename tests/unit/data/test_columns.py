"""Columns beside the manifest: missing, damaged and malicious files are refused, and unused columns are not read."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, write_prepared

from dnabert_rm.data.columns import COLUMNS_NAME, ContigInfo, ContigTable
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.utils.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "data", [[random_bases(rng, 90), random_bases(rng, 70)], [random_bases(rng, 50)]])
    return tmp_path / "data"


def rewrite(folder: Path, name: str, content: bytes | None) -> None:
    """Replace one array in the file, or remove it."""
    path = folder / COLUMNS_NAME
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members.pop(f"{name}.npy")
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in [*members.items(), *([] if content is None else [(f"{name}.npy", content)])]:
            archive.writestr(member, data)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def test_contigs_are_rows_of_the_columns() -> None:
    rows = [
        ContigInfo("yeast", "chrI", 100, 80, {"ambiguous": 15}),
        ContigInfo("fly", "Ünicode", 7, 0, {"too_short": 7}),
        ContigInfo("yeast", "chrII", 0, 0, {}),
    ]
    table = ContigTable.from_rows(rows)
    assert list(table) == rows and table[-1] == rows[-1] and table[1:] == rows[1:] and len(table) == 3
    assert table.genomes == ["yeast", "fly"]
    with pytest.raises(IndexError):
        table[3]
    with pytest.raises(ValueError, match="line feed"):
        ContigTable.from_rows([ContigInfo("g", "a\nb", 1, 1, {})])


def test_a_missing_or_damaged_file_is_refused_in_one_line(folder: Path) -> None:
    path = folder / COLUMNS_NAME
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"columns\.npz: is missing; copy the file, or build the data again$"):
        load_manifest(folder)
    rng = np.random.default_rng(0)
    for number in range(300 + 2 * len(good)):
        bad = bytearray(good)
        if number < 2 * len(good):
            bad[number // 2] ^= (1, 0x40)[number % 2]  # flags of the archive, such as that a file is encrypted
        elif number % 2:
            del bad[int(rng.integers(len(bad))) :]
        else:
            bad[int(rng.integers(len(bad)))] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        try:
            manifest = load_manifest(folder)
            assert list(manifest.contigs)
        except DataError as error:
            assert "columns.npz: is damaged (" in str(error) and "\n" not in str(error)
            continue
        # The changed byte was one that does not matter, such as a date.
        assert [shard.segments.tolist() for shard in manifest.shards] == [[85, 65], [45]]
        assert [contig.length for contig in manifest.contigs] == [90, 70, 50]


@pytest.mark.parametrize(
    "content",
    [
        None,
        npy(np.array([85, 65, 46])),
        npy(np.array([85, 65, 45], dtype=np.int32)),
        npy(np.array([85.0, 65.0, 45.0])),
        npy(np.array([[85, 65, 45]])),
        npy(np.zeros(10_000_000, dtype=np.int64)),
        npy(np.array([os.getcwd, 1, 2], dtype=object)),
        npy(np.array([85, 65, 45])).replace(b"(3,), }        ", b"(10000000000000,)}"[:16]),
        b"nothing",
    ],
)
def test_another_column_than_the_manifest_s_is_refused(folder: Path, content: bytes | None) -> None:
    """Objects are not unpickled."""
    rewrite(folder, "segment_tokens", content)
    with pytest.raises(DataError, match=r"columns\.npz: is damaged \(.*segment_tokens"):
        load_manifest(folder)


def test_training_does_not_read_the_contigs(folder: Path) -> None:
    """A run on millions of contigs needs the lengths of segments alone."""
    rewrite(folder, "contig_name", b"damaged")
    WindowDataset([folder], [], WindowSettings(window=22, num_streams=2), 0).windows(np.arange(9), 0)
    with pytest.raises(DataError, match=r"columns\.npz: is damaged"):
        list(load_manifest(folder).contigs)
