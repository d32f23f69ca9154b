"""Random access to a FASTA: plain, gzip or from a pipe, and a full folder for temporary files."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dnabert_rm.genome.contigs import RegionReader
from dnabert_rm.genome.reference import Genome
from dnabert_rm.inference.sequence_input import Region, Tokenization, cut_windows
from dnabert_rm.utils.errors import DataError

FASTA = b">chr1 first\nACGT\nacgtN\n>chr2\n" + b"ACGTTGCA" * 50_000 + b"\n"


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process can write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def check(path: Path) -> None:
    with Genome(str(path)) as genome:
        assert genome.names == ["chr1", "chr2"]
        assert (genome.length("chr1"), genome.length("chr2"), genome.length("chr3")) == (9, 400_000, None)
        assert genome.fetch("chr1", 2, 9) == b"GTACGTN"
        assert genome.fetch("chr2", 399_990, 400_000) == b"CAACGTTGCA"


def test_plain_gzip_and_pipe_give_the_same_bases(tmp_path: Path) -> None:
    for name, content in (
        ("plain", FASTA),
        ("gzip", gzip.compress(FASTA)),
        ("padded", gzip.compress(FASTA) + bytes(9)),
    ):
        (tmp_path / name).write_bytes(content)
        check(tmp_path / name)
        os.mkfifo(tmp_path / f"{name}.fifo")
        writer = threading.Thread(target=(tmp_path / f"{name}.fifo").write_bytes, args=(content,))
        writer.start()
        check(tmp_path / f"{name}.fifo")
        writer.join()


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(FASTA))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with largest_file(100_000), pytest.raises(DataError, match=f"^{tmp_path}: no space for a temporary copy"):
        Genome(str(tmp_path / "g.fa.gz"))
    assert [path.name for path in tmp_path.iterdir()] == ["g.fa.gz"]


def test_a_long_record_without_space_for_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    blocks = iter([b"ACGT" * 250_000] * 8)
    with largest_file(6_000_000), pytest.raises(DataError, match=f"^{tmp_path}: no space for a temporary copy"):
        list(cut_windows(Region("a"), blocks, Tokenization(3, 1, 100), "middle"))


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(FASTA))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"no space for a temporary copy .*TMPDIR"):
        Genome(str(tmp_path / "g.fa.gz"))


def test_many_short_regions_in_order_read_each_byte_once(tmp_path: Path) -> None:
    """With one read from the anchor for each region, 2,000 regions would read 400 MB."""
    (tmp_path / "a.fa").write_bytes(FASTA)
    start = FASTA.index(b">chr2") + len(b">chr2\n")
    bases = FASTA[start:-1]
    anchors = [(start, 0), (start + 250_000, 250_000)]
    reader = RegionReader(str(tmp_path / "a.fa"), "a.fa")
    num_bytes = 0

    class Counted:
        def __init__(self, stream) -> None:
            self.seek, self._read, self.close = stream.seek, stream.read, stream.close

        def read(self, size: int) -> bytes:
            nonlocal num_bytes
            content = self._read(size)
            num_bytes += len(content)
            return content

    reader._stream = Counted(reader._stream)  # type: ignore[assignment]
    regions = [(first, first + 30) for first in range(5, 399_000, 197)]
    for first, last in [*regions, (3, 9), (390_000, 390_010), (260_000, 399_999), (100, 250_100)]:
        found = reader.read(1, first, last, anchors[first >= 250_000])
        assert found.tobytes() == bases[first:last]
        if (first, last) == regions[-1]:
            assert num_bytes < 1.2 * len(bases)
    reader.close()
