"""Streaming sequence input and window cutting, compared with slow versions that hold everything in memory."""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_fasta import fasta_texts, slow_records

from dnabert_rm.genome import fasta_stream as stream
from dnabert_rm.genome import kmer
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.inference.sequence_input import Region, Tokenization, cut_windows, read_records, regions
from dnabert_rm.tokenizer.windows import windows
from dnabert_rm.utils.errors import DataError


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(path: Path | str, **options: str) -> list[tuple[str, str]]:
    with Input(path, "sequences") as source:
        return [(name, b"".join(blocks).decode()) for name, blocks in read_records(source, **options)]


@given(fasta_texts(), st.integers(9, 60), st.booleans())
@settings(deadline=None, max_examples=200)
def test_records_match_the_slow_reader(folder: Path, text: str, block_bytes: int, packed: bool) -> None:
    expected = slow_records(text.replace("\r\n", "\n"))
    assume(not any(letter in sequence for _, sequence in expected for letter in "Uu"))
    path = folder / "x.fa"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    # A header must fit in a block; with the real block size that is 256 KB.
    longest = max(len(line.encode()) for line in text.split("\n"))
    with patch.object(stream, "BLOCK_BYTES", max(block_bytes, longest + 1)):
        assert read(path) == expected


def test_long_lines_are_read_in_blocks_from_files_and_standard_input(tmp_path: Path, monkeypatch) -> None:
    sequence = "ACGTTGCA" * 50_000
    data = f"\n >one\n{sequence}\n>two\n>three x\nac\ngt".encode()
    expected = [("one", sequence), ("two", ""), ("three", "acgt")]
    for packed in (False, True):
        raw = io.BytesIO(gzip.compress(data) if packed else data)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))
        assert read("-") == expected
    (tmp_path / "x.fa").write_bytes(data)
    with Input(tmp_path / "x.fa", "sequences") as source:
        sizes = [len(block) for _, blocks in read_records(source) for block in blocks]
    assert len(sizes) > 2 and max(sizes) <= 2 * stream.BLOCK_BYTES


def test_csv_and_tsv_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('\nlabel,Sequence,gene\n1,ACGT,a\n\n0,"acn",b\n')
    assert read(path) == [("1", "ACGT"), ("2", "acn")]
    assert read(path, id_column="gene") == [("a", "ACGT"), ("b", "acn")]
    long = "ACGT" * 100_000
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(f"\ufeffid\tsequence\nx\t{long}\n".encode()))
    assert read(tmp_path / "t.tsv.gz") == [("x", long)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "x: is empty"),
        (b"@r\nACGT\n", "x, line 1: starts with '@' like FASTQ"),
        (b"\n>a\nACGT\nAC\nAUG\n", "x, line 5: 'U' is not a nucleotide; write T for U"),
        (b">a\nMEF\n", "x, line 2: 'E' is not a nucleotide"),
        (b">a\n" + b"A" * stream.BLOCK_BYTES + b">b\nACGT\n", "x, line 2: '>' is not a nucleotide"),
        (b">a\nACGT\n> b\n", "x, line 3: the header has no name"),
        (b"\nname,seq\n1,ACGT\n", "x:2: no column 'sequence' (found: 'name', 'seq')"),
        (b"sequence,sequence\n", "x:1: 2 columns 'sequence'"),
        (b"\nid,sequence\na,ACGT\nb,AC-T\n", "x:4: '-' is not a nucleotide"),
        (b"id,sequence\na,ACGT\nb,\n", "x:3: the sequence is empty"),
        (b"id,sequence\na,ACGT,3\n", "x:2: has 3 columns where the header has 2"),
        (b'id,sequence\na,"ACGT"x\n', "x:2: not a valid row"),
        (b"\xff\xfe\x00", "x: is text in UTF-16"),
        (b"\xc3\x28", "x: not a text file"),
        (gzip.compress(b">a\n" + b"ACGT" * 1000)[:-9], "x: the gzip data are damaged or end too early"),
    ],
)
def test_unreadable_input_is_reported_with_its_line(tmp_path: Path, monkeypatch, text: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").write_bytes(text)
    with pytest.raises(DataError) as error:
        read("x")
    assert str(error.value).startswith(message)


SIZES = [0, 1, 2, 3, 9, 10, 11, 12, 13, 20, 21, 37, 200]


def blocks_of(sequence: bytes, size: int) -> Iterator[bytes]:
    return (sequence[i : i + size] for i in range(0, len(sequence), size))


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("num_bases", SIZES)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_windows_and_middles_match_cutting_the_whole_sequence(num_bases: int, step: int, block: int) -> None:
    rng = np.random.default_rng(num_bases)
    sequence = bytes(rng.choice(list(b"ACGT"), num_bases).tolist())
    ids = kmer.encode(sequence, 3)[::step]
    for max_kmers in (1, 2, 9, 10, 60):
        tokenization = Tokenization(3, step, max_kmers)
        assert tokenization.num_kmers(num_bases) == len(ids)
        region = Region("a", 100)
        found = list(cut_windows(region, blocks_of(sequence, block), tokenization, "window"))
        expected = list(windows(len(ids), max_kmers))
        assert [kmer.encode(window.sequence, 3)[::step].tolist() for window in found] == [
            ids[window.start : window.stop].tolist() for window in expected
        ]
        assert [window.start for window in found] == [100 + step * window.start for window in expected]
        assert [window.is_last for window in found] == [False] * (len(found) - 1) + [True]
        assert (region.start, region.end) == (100, 100 + num_bases)
        (window,) = cut_windows(region, blocks_of(sequence, block), tokenization, "middle")
        cut = max(0, len(ids) - max_kmers) // 2
        assert kmer.encode(window.sequence, 3)[::step].tolist() == ids[cut : cut + max_kmers].tolist()
        assert window.start == 100 + step * cut


@pytest.mark.parametrize("num_bases", SIZES)
@pytest.mark.parametrize(("size", "step"), [(10, None), (10, 10), (10, 3), (10, 25), (1, 1), (300, 7)])
def test_tiles_cover_a_record_and_none_contains_another(num_bases: int, size: int, step: int | None) -> None:
    sequence = bytes(np.random.default_rng(7).choice(list(b"ACGT"), num_bases).tolist())
    step = step or size
    for block in (1, 7, 1000):
        records = iter([("a", blocks_of(sequence, block)), ("b", blocks_of(b"ACGT", block))])
        found = [(region.name, region.start, b"".join(blocks)) for region, blocks in regions(records, size, step)]
        tiles = [(start, tile) for name, start, tile in found if name == "a"]
        starts = [s for s in range(0, max(1, num_bases), step) if s == 0 or s - step + size < num_bases]
        assert tiles == [(start, sequence[start : start + size]) for start in starts]
        assert step > size or tiles[-1][0] + size >= num_bases
        assert found[len(tiles)][:2] == ("b", 0)


@pytest.mark.parametrize("mode", ["window", "middle", "tile"])
def test_memory_does_not_grow_with_record_length(mode: str) -> None:
    block = b"ACGTTGCA" * (1 << 15)
    records = iter([("a", (block for _ in range(160)))])  # 40 Mbase
    tile = 5000 if mode == "tile" else None
    tokenization = Tokenization(6, 1, 50_000)
    tracemalloc.start()
    count = sum(
        1
        for region, blocks in regions(records, tile)
        for _ in cut_windows(region, blocks, tokenization, "middle" if mode == "middle" else "window")
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == {"window": 1677, "middle": 1, "tile": 8389}[mode]
    assert peak < 6e6
