"""FASTA scans in ranges and region reads, against a slow independent reader."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slow_fasta import fasta_texts, slow_records

from dnabert_rm.genome import fasta_scan as fasta
from dnabert_rm.genome import kmer
from dnabert_rm.genome.contigs import (
    Contig,
    RegionReader,
    check_scan,
    join_record_parts,
    pure_codes,
    without_whitespace,
)
from dnabert_rm.genome.fasta_scan import RecordPart, scan_range, scan_ranges
from dnabert_rm.utils.errors import DataError


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def scan(path: Path, range_bytes: int = 1 << 25, block_bytes: int = 1 << 18, rna: bool = False) -> list[RecordPart]:
    size = path.stat().st_size
    # The first range must include the first record's '>', as every range of a real size does.
    first = min(size, path.read_bytes().find(b">") + 1)
    ranges = [(0, first)] if range_bytes < first else [(0, min(size, range_bytes))]
    ranges += [
        (start + ranges[0][1], stop + ranges[0][1]) for start, stop in scan_ranges(size - ranges[0][1], range_bytes)
    ]
    with patch.object(fasta, "BLOCK_BYTES", block_bytes):
        return [piece for start, stop in ranges for piece in scan_range(str(path), "x.fa", start, stop, rna)]


def contigs_of(path: Path, **sizes: int) -> list[Contig]:
    pieces = scan(path, **sizes)
    check_scan("x.fa", str(path), pieces)
    return join_record_parts("genome", 0, pieces)


@given(fasta_texts(), st.integers(1, 80), st.integers(1, 80), st.booleans())
@settings(deadline=None, max_examples=300)
@example(">a\nACGT\n>b\n\n>c", 4, 3, False)
@example(">a\nAC\n>b\nGT\n", 6, 6, False)
def test_any_split_into_ranges_finds_the_records_and_gaps_of_the_slow_reader(
    folder: Path, text: str, range_bytes: int, block_bytes: int, rna: bool
) -> None:
    path = folder / "scan.fa"
    path.write_bytes(text.encode())
    # A first block without '>' is rejected, so it must cover everything that may precede the first record.
    found = join_record_parts("genome", 0, scan(path, range_bytes, max(9, block_bytes), rna))
    expected = slow_records(text.replace("\r\n", "\n"))
    assert [(contig.name, contig.length) for contig in found] == [(name, len(seq)) for name, seq in expected]
    bases = "[^ACGTUacgtu]+" if rna else "[^ACGTacgt]+"
    for contig, (_, sequence) in zip(found, expected, strict=True):
        assert contig.gaps.tolist() == [list(match.span()) for match in re.finditer(bases, sequence)]


@given(fasta_texts(), st.integers(1, 200), st.data())
@settings(deadline=None, max_examples=120)
def test_any_region_equals_that_of_the_slow_reader(
    folder: Path, text: str, range_bytes: int, data: st.DataObject
) -> None:
    path = folder / "regions.fa"
    path.write_bytes(text.encode())
    found = join_record_parts("genome", 0, scan(path, range_bytes, 16))
    expected = slow_records(text.replace("\r\n", "\n"))
    reader = RegionReader(str(path), "x.fa")
    for _ in range(8):
        number = data.draw(st.integers(0, len(found) - 1))
        contig, sequence = found[number], expected[number][1]
        if not sequence:
            continue
        start = data.draw(st.integers(0, len(sequence) - 1))
        end = data.draw(st.integers(start, len(sequence)))
        anchor = contig.anchors_of(np.array([start]))[0].tolist()
        letters = reader.read(number, start, end, (anchor[0], anchor[1]))
        assert letters.tobytes().decode() == sequence[start:end]
    reader.close()


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda tail: b">a\nACGT\n" + tail)))
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_read_correctly_or_rejected_in_one_line(folder: Path, data: bytes) -> None:
    path = folder / "garbage.fa"
    path.write_bytes(data)
    try:
        found = contigs_of(path, range_bytes=32)
    except DataError as error:
        assert str(error).startswith("x.fa") and "\n" not in str(error)
        return
    expected = slow_records(data.decode("utf-8", "backslashreplace").replace("\r\n", "\n"))
    assert [(contig.name, contig.length) for contig in found] == [(name, len(seq)) for name, seq in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.fa: is empty"),
        (" \n\n", "x.fa: holds no record"),
        ("\nACGT\n>a\n", "x.fa, line 2: not FASTA"),
        ("@read\nACGT\n+\nIIII\n", "line 1: starts with '@' like FASTQ"),
        (">a\nACGT\n>\nAC\n", "line 3: the header has no name"),
        (">a\nACGT\n> b\nAC\n", "line 3: the header has no name"),
        (">a\nACGT\nAC1GT\n", "line 3: '1' is not a nucleotide code"),
        (">a\nACGT\nAC>GT\n", "line 3: '>' is not a nucleotide code"),
        (">a\nAC\x00GT\n", r"line 2: '\x00' is not a nucleotide code"),
        (">a\rACGT\r>b\rAC\r", "line 1: the header contains a carriage return"),
        (">a\nAC\n>b\nAC\n>a\nGG\n", "line 5: a second record is named 'a'"),
        (">sp|P69905\nMVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF\n", "not protein"),
        (">a\nMV--------LS..........PADK-TNVKAAWGKVG--AHAG\n", "not protein"),
        (">a\nGAUUACANNN\n", "x.fa: has more U than T, so it holds RNA"),
        (">a\nACGU\n>TTTT t\nACGUACGTACG\n", "x.fa: has more U than T, so it holds RNA"),
        (">chr\u00a01 x\nAC\n", "line 1: the name in the header contains the space U+00A0"),
        (">a\nAC\n>gi|1\x01gi|2\nAC\n", "line 3: the name in the header contains the control character U+0001"),
        (">" + "x" * 70_000 + "\nACGT\n", "line 1: the header has more than 65536 bytes"),
    ],
)
def test_invalid_fasta_is_rejected_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.fa"
    path.write_text(text, newline="")
    with pytest.raises(DataError, match=re.escape(message)):
        contigs_of(path, range_bytes=7, block_bytes=1 << 18)


def test_up_to_half_of_the_letters_may_be_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGTRYKM\n>b\nNNNN\n>c\nRYKM\n")
    assert len(contigs_of(path)) == 3
    path.write_text(">a\nACGRYKM\n")
    with pytest.raises(DataError, match="not protein"):
        contigs_of(path)


def test_gaps_of_an_alignment_do_not_count_as_dna(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT----RYKM....\n")
    assert contigs_of(path)[0].gaps.tolist() == [[4, 16]]
    path.write_text(">a\nACG-----RYKM....\n")
    with pytest.raises(DataError, match="not protein"):
        contigs_of(path)


def test_as_many_u_as_t_are_dna(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGU\nacgu\n>b\nACGT\nacgt\n")
    assert [contig.gaps.tolist() for contig in contigs_of(path)] == [[[3, 4], [7, 8]], []]


def test_a_long_header_at_every_offset_from_a_range_boundary(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">first " + "z" * 40 + "\nACGT\n>second " + "y" * 90 + "\nNNAC\n")
    for range_bytes in range(1, 60):
        found = contigs_of(path, range_bytes=range_bytes)
        assert [(contig.name, contig.length) for contig in found] == [("first", 4), ("second", 4)]


def test_a_contig_on_one_line_is_split_into_ranges(tmp_path: Path) -> None:
    sequence = "ACGTTGCA" * 40_000 + "N" + "ACGT" * 10
    path = tmp_path / "x.fa"
    path.write_text(f">one\n{sequence}\n")
    (contig,) = contigs_of(path, range_bytes=100_000)
    assert contig.length == len(sequence) and contig.gaps.tolist() == [[320_000, 320_001]]
    assert len(contig.anchors) >= 4


def test_a_file_that_shrinks_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n")
    with pytest.raises(DataError, match="became shorter"):
        scan_range(str(path), "x.fa", 0, 1000, False)
    reader = RegionReader(str(path), "x.fa")
    with pytest.raises(DataError, match="became shorter"):
        reader.read(0, 0, 100, (3, 0))


@given(st.text("ACGTUacgtu"))
def test_pure_codes_are_the_codes_of_the_alphabet(text: str) -> None:
    codes = pure_codes(np.frombuffer(text.encode(), np.uint8))
    assert codes.dtype == np.uint8
    assert codes.tolist() == kmer.base_codes(text.upper().replace("U", "T")).tolist()


@given(st.binary())
def test_only_whitespace_is_removed(raw: bytes) -> None:
    assert without_whitespace(raw) == bytes(byte for byte in raw if byte not in b" \t\r\n")
