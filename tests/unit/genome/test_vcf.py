"""VCF rows of every kind (VCF 4.3, sections 1.4 and 1.6.1): each allele gets a sequence or a reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.genome.vcf import Allele, VariantReader
from dnabert_rm.utils.errors import DataError

HEADER = b"##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
CHR1 = "ACGTACGTNRYSWKMBDHVnacgtACGTT"
FASTA = f">chr1\n{CHR1}\n>AC\nAC\n"


def read(folder: Path, content: bytes, *, drop: bool = False, fasta: str = FASTA) -> tuple[list[Allele], dict]:
    (folder / "g.fa").write_text(fasta)
    (folder / "v.vcf").write_bytes(content)
    with Genome(str(folder / "g.fa")) as genome, Input(folder / "v.vcf", "a VCF file") as source:
        reader = VariantReader(source, genome, radius=5, min_bases=3, drop=drop)
        sites = list(reader.sites())
    for site in sites:
        assert bool(site.sequence) == any(not allele.reason for allele in site.alleles)
        if site.sequence:
            position = site.alleles[0].position
            assert site.sequence[site.target] == ord(CHR1[position].upper())
    return [allele for site in sites for allele in site.alleles], reader.dropped


def row(position: object, ref: str, alt: str, contig: str = "chr1") -> bytes:
    return f"{contig}\t{position}\trs1\t{ref}\t{alt}\t.\tPASS\tDP=3\n".encode()


@pytest.mark.parametrize(
    ("position", "ref", "alt", "reason"),
    [
        (1, "A", "C", ""),
        (1, "a", "c", ""),
        (21, "A", "T", ""),
        (21, "a", "G", ""),
        (29, "T", "G", ""),
        # IUPAC codes in the FASTA: REF is the first base of the code, or the code itself in older files.
        (10, "A", "G", ""),
        (11, "C", "T", ""),
        (12, "C", "G", ""),
        (13, "A", "T", ""),
        (14, "G", "T", ""),
        (15, "A", "C", ""),
        (16, "C", "A", ""),
        (17, "A", "C", ""),
        (18, "A", "C", ""),
        (19, "A", "C", ""),
        (10, "R", "G", "not A, C, G, T"),
        (9, "N", "A", "REF is N"),
        (20, "N", "A", "REF is N"),
        (1, "N", "A", "REF is N"),
        (1, "n", "<DEL>", "symbolic allele"),
        (8, "TNAC", "T", "indel"),
        (8, "TNRY", "T", "indel"),
        (8, "TNNN", "T", "indel"),
        # Alleles
        (1, "A", ".", "no alternative allele"),
        (1, "A", "", "no alternative allele"),
        (1, "A", "*", "overlapping deletion"),
        (1, "A", "<*>", "symbolic allele"),
        (1, "A", "<NON_REF>", "symbolic allele"),
        (1, "A", "<DUP:TANDEM>", "symbolic allele"),
        (1, "A", "<INS:ME:ALU>", "symbolic allele"),
        (1, "A", "<CNV>", "symbolic allele"),
        (2, "C", "C[chr1:20[", "breakend"),
        (2, "C", "]chr1:20]C", "breakend"),
        (2, "C", "[<ctg1>:7[C", "breakend"),
        (2, "C", "]chr9:1]ACGTC", "breakend"),
        (2, "C", "C.", "breakend"),
        (2, "C", ".C", "breakend"),
        (2, "C", ".TTC", "breakend"),
        (1, "A", "AT", "indel"),
        (1, "AC", "A", "indel"),
        (1, "AC", "GT", "several bases"),
        (1, "A", "N", "not A, C, G, T"),
        (1, "A", "R", "not A, C, G, T"),
        (1, "A", "A", "ALT is REF"),
        (1, "A", "a", "ALT is REF"),
        # Positions
        (0, "N", "]chr1:20]", "telomere"),
        (0, "N", "<DEL>", "telomere"),
        (0, ".", "A", "telomere"),
        (30, "N", "]chr1:20]N", "telomere"),
        (1, ".", "<INV>", "no REF"),
    ],
)
def test_each_kind_of_allele_has_a_score_or_a_reason(
    tmp_path: Path, position: int, ref: str, alt: str, reason: str
) -> None:
    alleles, _ = read(tmp_path, HEADER + row(position, ref, alt))
    assert [(allele.position + 1, allele.ref, allele.alt, allele.reason) for allele in alleles] == [
        (position, ref, alt, reason)
    ]


def test_alleles_of_one_line_are_judged_one_by_one(tmp_path: Path) -> None:
    alleles, _ = read(tmp_path, HEADER + row(1, "A", "C,AT,<DEL>,*,.,G") + row(1, "A", "C", "<ctg1>"))
    assert [allele.reason for allele in alleles] == [
        "",
        "indel",
        "symbolic allele",
        "overlapping deletion",
        "no alternative allele",
        "",
        "contig of an assembly file",
    ]
    assert read(tmp_path, HEADER + row(1, "A", "C", "AC"))[0][0].reason == "contig shorter than a k-mer"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row(2, "T", "A"), "line 3: REF is T, but .* has C there"),
        (row(10, "G", "A"), "line 3: REF is G, but .* has R there"),
        (row(9, "A", "C"), "line 3: REF is A, but .* has N there"),
        (row(1, "AT", "A"), "line 3: REF is AT, but .* has AC there"),
        (row(31, "A", "C"), "line 3: position 31: REF is not inside contig chr1, which has 29 bases"),
        (row(28, "TTT", "T"), "line 3: position 28: REF is not inside contig chr1, which has 29 bases"),
        (row(9**99, "A", "C"), "line 3: position [0-9]+: REF is not inside contig chr1, which has 29 bases"),
        (row(1, "A", "C", "1"), "line 3: contig '1' is not in"),
        (row(-1, "A", "C"), "line 3: expected CHROM, POS, ID, REF and ALT"),
        (row("1e3", "A", "C"), "line 3: expected CHROM, POS, ID, REF and ALT"),
        (row("\N{ARABIC-INDIC DIGIT ONE}", "A", "C"), "line 3: expected CHROM, POS, ID, REF and ALT"),
        (b"chr1 1 . A C\n", "line 3: expected CHROM, POS, ID, REF and ALT, separated by tabs"),
        (b"chr1\t1\t.\tA\n", "line 3: expected CHROM, POS, ID, REF and ALT"),
    ],
)
def test_a_row_that_contradicts_the_genome_is_an_error_or_dropped(tmp_path: Path, line: bytes, message: str) -> None:
    good = row(1, "A", "C")
    with pytest.raises(DataError, match=message):
        read(tmp_path, HEADER + line + good)
    alleles, dropped = read(tmp_path, HEADER + line + good, drop=True)
    assert [allele.alt for allele in alleles] == ["C"] and dropped.total() == 1


def test_lines_of_any_length_are_read_whole(tmp_path: Path) -> None:
    """The lines are longer than a block: in the header, in the samples, in ALT and in INFO."""
    long = "ACGTTGCA" * 100_000
    rows = [
        b"##comment=" + b"x" * 600_000 + b"\n",
        row(1, "A", "C").rstrip() + b"\tGT" + b"\t0|1" * 200_000 + b"\n",
        row(1, "A", f"A{long},G"),
        row(2, "C", "T").rstrip() + b";X=" + b"y\tz" * 200_000 + b"\n",
        row(3, "G", "T"),
    ]
    for newline in (b"\n", b"\r\n"):
        alleles, _ = read(tmp_path, HEADER.replace(b"\n", newline) + b"".join(rows).replace(b"\n", newline))
        assert [allele.alt for allele in alleles] == ["C", f"A{long}", "G", "T", "T"]
        assert [allele.reason for allele in alleles] == ["", "indel", "", "", ""]
    with pytest.raises(DataError, match="line 8: position 99: REF is not inside"):
        read(tmp_path, HEADER + b"".join(rows) + row(99, "A", "C"))


def test_byte_order_mark_line_ends_and_a_missing_last_one(tmp_path: Path) -> None:
    content = HEADER + row(1, "A", "C") + b"\n" + row(2, "C", "G")
    expected = read(tmp_path, content)
    assert len(expected[0]) == 2
    for variant in (
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        content.rstrip(b"\n"),
        b"\xef\xbb\xbf" + content.removeprefix(HEADER),
        b"\n" + content,
    ):
        assert read(tmp_path, variant) == expected
        assert read(tmp_path, gzip.compress(variant)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "v.vcf: is empty; pass a VCF file"),
        (b"\n \n", "v.vcf: is empty; pass a VCF file"),
        (b"BCF\2\2...", "v.vcf: is BCF; convert it to VCF first"),
        (HEADER.replace(b"\n", b"\r") + row(1, "A", "C"), "carriage returns inside line 1"),
        (FASTA.encode(), "line 1: expected CHROM, POS, ID, REF and ALT"),
        (HEADER.decode().encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    for data in (content, gzip.compress(content)):
        with pytest.raises(DataError, match=message):
            read(tmp_path, data)


def test_a_header_without_rows_is_not_an_error(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER)[0] == []


@pytest.mark.parametrize(
    "line",
    [
        b"chr1\t4\t9\t.\t0\t+\n",
        b"chr1\t4\t9\t.\t.\t.\n",
        b"chr1\t0\t9\tpeak_1\t960\t+\n",
        b"chr1\t1\t9\tA\t0.5\t+\n",
        b"chr1\t1\t9\tA\t1e-5\t+\n",
    ],
)
def test_a_bed_file_is_refused(tmp_path: Path, line: bytes) -> None:
    """Its columns name and score are where a VCF has REF and ALT."""
    for content in (line, b"# chrom\tstart\n" + line):
        with pytest.raises(DataError, match=r"are no alleles, and the file has no header of a VCF \(is it BED\?\)"):
            read(tmp_path, content)
        assert read(tmp_path, content, drop=True) == ([], {"not a row of a VCF": 1})


def test_rows_without_a_header_can_have_any_allele(tmp_path: Path) -> None:
    for alt in ("C", "c,G", "AT", "<DUP:1>", "A[chr1:20[", "]chr1:20]A", ".", "*,C", "", "<*>", "A."):
        assert read(tmp_path, row(1, "A", alt)) == read(tmp_path, HEADER + row(1, "A", alt))


def test_only_the_first_row_decides_whether_a_file_is_a_vcf(tmp_path: Path) -> None:
    """Later rows without an allele are counted, as in a file with a header."""
    for ref, alt in ((".", "A"), ("C", "-"), ("C", "0"), ("C", "G/T")):
        rows = row(1, "A", "C") + row(2, ref, alt)
        assert read(tmp_path, rows)[0][1:] == read(tmp_path, HEADER + rows)[0][1:]


@pytest.mark.parametrize("end", [b" ", b"  \r", b" \r"])
def test_blanks_at_the_end_of_a_line_are_skipped(tmp_path: Path, end: bytes) -> None:
    content = HEADER + b"chr1\t1\t.\tA\tC" + end + b"\nchr1\t2\t.\tC\t" + end + b"\n"
    alleles, _ = read(tmp_path, content)
    assert [(allele.alt, allele.reason) for allele in alleles] == [("C", ""), ("", "no alternative allele")]
