"""BED files: formats, optional columns, mistakes with their line, and sets of ranges."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnabert_rm.genome.annotation import read_annotation
from dnabert_rm.genome.interval_flags import Selection
from dnabert_rm.genome.intervals import Intervals, intersect, merge, read_intervals, subtract
from dnabert_rm.utils.errors import DataError, UserError

ROWS = [("chr1", 10, 20), ("chr2", 0, 5), ("chr1", 15, 15), ("chr1", 3, 4)]


def rows_of(intervals: Intervals) -> list[tuple[str, int, int]]:
    names = [intervals.contig_names[i] for i in intervals.contig.tolist()]
    return list(zip(names, intervals.start.tolist(), intervals.end.tolist(), strict=True))


def read(folder: Path, content: bytes, details: bool = False) -> Intervals:
    (folder / "a.bed").write_bytes(content)
    return read_intervals(folder / "a.bed", details)


TABS = b"".join(f"{name}\t{start}\t{end}\n".encode() for name, start, end in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        TABS,
        TABS.removesuffix(b"\n"),
        TABS.replace(b"\t", b" "),
        TABS.replace(b"\t", b"  \t").replace(b"  \t", b"   "),
        TABS.replace(b"\n", b"\r\n"),
        TABS.replace(b"\n", b"\tgene one\t0\t-\n"),
        b"\xef\xbb\xbf" + TABS,
        gzip.compress(TABS),
        gzip.compress(TABS[:20]) + gzip.compress(TABS[20:]),
        b"browser position chr1:1-9\ntrack name=x description='1 2'\n#chr1\t1\t2\n\n \n" + TABS,
        TABS + b"\n\n",
    ],
)
def test_any_usual_form_gives_the_same_intervals(tmp_path: Path, content: bytes) -> None:
    assert rows_of(read(tmp_path, content)) == ROWS


def test_line_numbers_count_every_line(tmp_path: Path) -> None:
    assert read(tmp_path, b"# one\n\n" + TABS).line.tolist() == [3, 4, 5, 6]


def test_optional_columns(tmp_path: Path) -> None:
    text = b"c\t1\t2\tgene one\t0.5\t+\textra\nc 3 4 b 7\nc\t5\t6\nc\t7\t8\t\tx\t*\n"
    details = read(tmp_path, text, details=True).details
    assert details is not None and read(tmp_path, text).details is None
    assert details.name == ["gene one", "b", "", ""]
    assert details.score.tolist()[:2] == [0.5, 7] and np.isnan(details.score[2:]).all()
    assert details.strand.tolist() == [b"+", b".", b".", b"."]


GFF = b"chr1\tensembl\tgene\t11\t20\t.\t+\t.\tID=a\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.bed: has no interval; pass a BED file"),
        (b"# nothing\ntrack x\n", "a.bed: has no interval"),
        (b"c\t1\t2\nc\t9\t8\n", "a.bed, line 2: start 9 is after end 8; swap the two columns"),
        (b"chrom\tstart\tend\nc\t1\t2\n", "a.bed, line 1: not BED: start 'start' is not a whole number of 0 or more"),
        (b"c\t-1\t2\n", "line 1: not BED: start '-1' is not"),
        (b"c\t1\t2e6\n", "line 1: not BED: end '2e6' is not"),
        (b"c\t1\t1_0\n", "line 1: not BED: end '1_0' is not"),
        (b"c\t1\t" + b"9" * 5000 + b"\n", "line 1: not BED: end '9999"),
        (b"c\t\t5\t10\n", "line 1: not BED: start '' is not"),
        (b"c\t1\t2\nc\t1\n", "line 2: not BED: expected contig, start and end, separated by tabs or blanks"),
        (b">chr1\nACGT\n", "line 1: not BED: expected contig, start and end"),
        (b"##gff-version 3\n" + GFF, "line 2: looks like GFF or GTF, not BED; convert the file first (awk"),
        (b"c\t1\t2\rc\t3\t4\r", "has carriage returns inside line 1"),
        (b"x" * 300_000, "line 1: is longer than 262,144 bytes"),
        (b"PK\x03\x04", "is a zip archive"),
        (gzip.compress(TABS * 50)[:-9], "the gzip data are damaged or end too early"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b.bed: no such file \(a BED file expected\)"):
        read_intervals(tmp_path / "b.bed")


def test_a_large_file_is_read_in_seconds(tmp_path: Path) -> None:
    starts = np.random.default_rng(0).integers(0, 10**8, 200_000).tolist()
    (tmp_path / "a.bed").write_text("".join(f"c{i % 5000}\t{a}\t{a + 9}\tx\n" for i, a in enumerate(starts)))
    before = time.process_time()
    assert read_intervals(tmp_path / "a.bed").start.tolist() == starts
    assert time.process_time() - before < 3


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=8).map(
    lambda rows: np.array([(start, start + size) for start, size in rows], dtype=np.int64).reshape(-1, 2)
)


def positions(ranges: np.ndarray) -> set[int]:
    return {i for start, end in ranges.tolist() for i in range(start, end)}


@given(RANGES, RANGES)
def test_sets_of_ranges_equal_sets_of_positions(one: np.ndarray, other: np.ndarray) -> None:
    first, second = merge(one), merge(other)
    assert positions(first) == positions(one)
    assert all(end < start for end, start in zip(first[:-1, 1], first[1:, 0], strict=True)), "touching ranges are one"
    both = intersect(first, second)
    assert positions(both) == positions(one) & positions(other)
    rest = subtract(first, both)
    assert positions(rest) == positions(one) - positions(other)
    for found in (first, both, rest):
        assert (found[:, 1] > found[:, 0]).all() and (found[1:, 0] >= found[:-1, 1]).all()


@pytest.mark.parametrize(("last", "is_peak"), [("", False), ("\t7", True), ("\t2\t9", False), ("\t2\t9,9\t0,9", False)])
def test_only_exactly_ten_columns_are_a_narrow_peak(tmp_path: Path, last: str, is_peak: bool) -> None:
    """BED12 has its blocks there, bedMethyl has eleven columns or more, and a BED file with nine has colours."""
    (tmp_path / "a.bed").write_text(f"c\t100\t150\tx\t960\t+\t110\t120\t0,0,0{last}\n" * 2)
    found = read_intervals(tmp_path / "a.bed", details=True).details
    assert found is not None
    assert found.score.tolist() == [110.0 if is_peak else 960.0] * 2
    assert found.summit.tolist() == [7 if is_peak else -1] * 2


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("a.gtf", 'gene_id "g,1"; tag "CCDS"; tag "basic"; tag "canonical";'),
        ("a.gff3", "ID=g,1;tag=CCDS,basic,canon%2Cical"),
    ],
)
def test_one_of_several_values_of_an_attribute_is_enough(tmp_path: Path, name: str, column: str) -> None:
    (tmp_path / name).write_text(f"c\tx\tgene\t101\t200\t.\t+\t.\t{column}\n")
    for value in ("CCDS", "basic"):
        found = read_annotation(tmp_path / name, Selection(attributes=(("tag", value),))).details
        assert found is not None and found.name == ["g,1"]
    with pytest.raises(UserError, match="no line of"):
        read_annotation(tmp_path / name, Selection(attributes=(("tag", "other"),)))


@pytest.mark.parametrize("name", ["a.gff3", "a.gtf"])
def test_byte_order_mark_and_line_ends_of_gff(tmp_path: Path, name: str) -> None:
    content = b"##gff-version 3\n" + GFF
    for variant in (content, b"\xef\xbb\xbf" + content, b"\xef\xbb\xbf" + GFF, content.replace(b"\n", b"\r\n")):
        (tmp_path / name).write_bytes(variant)
        found = read_annotation(tmp_path / name, Selection())
        assert (found.contig_names, found.start.tolist(), found.end.tolist()) == (["chr1"], [10], [20])
    for variant in (content, GFF + GFF):
        (tmp_path / name).write_bytes(variant.replace(b"\n", b"\r"))
        with pytest.raises(DataError, match="has carriage returns inside line 1"):
            read_annotation(tmp_path / name, Selection())


def test_escapes_are_those_of_gff3(tmp_path: Path) -> None:
    """GTF has none. An escaped tab or line feed would add a column or a line to a file of names."""
    rows = "scaf%41\tx\tgene\t11\t20\t.\t+\t.\t{}\n"
    for name, column, contig, label in (
        ("a.gff3", "Name=a%09b%0Ac%3B", "scafA", "a b c;"),
        ("a.gff", "Name=a%09b", "scafA", "a b"),
        ("a.gtf", 'gene_id "a%41"', "scaf%41", "a%41"),
        ("a.gtf.gz", 'gene_id "a%41"', "scaf%41", "a%41"),
    ):
        text = rows.format(column).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        found = read_annotation(tmp_path / name, Selection())
        assert found.details is not None
        assert (found.contig_names, found.details.name) == ([contig], [label])
