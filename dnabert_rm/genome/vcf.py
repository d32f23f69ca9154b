"""Read variants from a VCF, check them against the genome, and fetch the sequence around each variant.

Positions are 0-based, except in the VCF and in messages, where they are 1-based.

Rows are interpreted according to VCF 4.3, sections 1.4 and 1.6.1.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import DataError

_NUM_COLUMNS = 5
"""CHROM, POS, ID, REF and ALT; by default the columns after them are not read."""
_NUM_COLUMNS_WITH_INFO = 8
"""The columns above, QUAL, FILTER and INFO."""
_MAX_POSITION_DIGITS = 18
_HEADER_LINES = ("##fileformat=VCF", "#CHROM\tPOS\t")
_LETTERS = re.compile("[A-Za-z]+")
_ALLELES = re.compile(r"[A-Za-z*.,]*|.*[<>\[\]].*")
_SHORT_CONTIG = "contig shorter than a k-mer"
_FIRST_BASES = bytes.maketrans(b"RYSWKMBDHV", b"ACCAGACAAA")
"""Map from each IUPAC code to its alphabetically first base, which VCF writes in REF instead of the code."""


@dataclass(frozen=True)
class Allele:
    """One pair of REF and ALT in a VCF row.

    If the allele gets no score, `reason` says why; otherwise `reason` is empty.
    """

    contig: str
    position: int
    """0-based."""
    name: str
    ref: str
    alt: str
    reason: str = ""


@dataclass(frozen=True)
class Site:
    """The alleles of one VCF row and the genome sequence around them. `sequence` is empty if no allele gets a score."""

    alleles: list[Allele]
    sequence: bytes = b""
    target: int = 0
    """Index of the variant in `sequence`."""
    info: str = ""
    """The row's INFO column. This field and those below are empty unless the reader keeps lines."""
    line: bytes = b""
    """The row as in the file, with its line end."""
    comments: tuple[bytes, ...] = ()
    """The comment lines and blank lines before the row; before the first row, these are the header."""


@dataclass
class VariantReader:
    """Reader of a VCF.

    A row that is invalid or contradicts the genome raises an error. If `drop` is true, such a row is counted and
    skipped instead.
    """

    source: Input
    genome: Genome
    radius: int
    """Number of bases on each side of a variant; fewer at a contig's ends."""
    min_bases: int
    """Contigs with fewer bases have no token, so their variants get no score."""
    drop: bool
    keep_lines: bool = False
    """Keep whole lines, and require the column INFO."""
    dropped: Counter[str] = field(default_factory=Counter)
    comments: list[bytes] = field(default_factory=list)
    """With `keep_lines`: the comment lines and blank lines since the last row; finally those after all rows."""

    @property
    def num_columns(self) -> int:
        """Number of columns that each row must have."""
        return _NUM_COLUMNS_WITH_INFO if self.keep_lines else _NUM_COLUMNS

    def sites(self) -> Iterator[Site]:
        """Yield one site per row of the VCF, in file order.

        Raises `DataError` if the file is empty or not a VCF. If `drop` is false, a row that is invalid or contradicts
        the genome also raises `DataError`, with the line number.
        """
        is_empty = True
        has_header = False
        for number, line in self._lines():
            is_empty = is_empty and not line.strip()
            if number == 1:
                self._check_first_line(line)
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n ")
            if not text.strip() or text.startswith("#"):
                has_header = has_header or text.startswith(_HEADER_LINES)
                if self.keep_lines:
                    self.comments.append(line)
                continue
            try:
                fields = text.split("\t", self.num_columns)[: self.num_columns]
                if not has_header:
                    _check_alleles(fields)
                    has_header = True  # other formats differ from the first row on
                site = self._site(fields)
                yield self._with_line(site, text, line) if self.keep_lines else site
            except _BadRow as error:
                if not self.drop:
                    raise DataError(
                        f"{self.source.display_name}, line {number}: {error}; fix the row, or pass"
                        " --bad-rows drop to skip such rows"
                    ) from None
                self.dropped[error.kind] += 1
        if is_empty:
            raise DataError(f"{self.source.display_name}: is empty; pass a VCF file")

    def _with_line(self, site: Site, text: str, line: bytes) -> Site:
        comments = tuple(self.comments)
        self.comments.clear()
        return replace(
            site, info=text.split("\t", self.num_columns)[self.num_columns - 1], line=line, comments=comments
        )

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and content of each line.

        Unless lines are kept, a long row may be cut after ALT, the last column that is needed. A row is long, for
        example, if it has 100,000 samples. Long comment lines may be cut too.
        """
        number = 1
        kept: list[bytes] = []
        num_tabs = 0
        for part in self.source.lines():
            if not kept:
                kept = [part.removeprefix(codecs.BOM_UTF8) if number == 1 else part]
                num_tabs = kept[0].count(b"\t")
            elif self.keep_lines or (num_tabs < _NUM_COLUMNS and not kept[0].startswith(b"#")):
                kept.append(part)
                num_tabs += part.count(b"\t")
            if part.endswith(b"\n"):
                yield number, b"".join(kept)
                number += 1
                kept = []
        if kept:
            yield number, b"".join(kept)

    def _check_first_line(self, line: bytes) -> None:
        """Raise `DataError` for a BCF file, and for a file whose lines end in carriage returns only."""
        if line.startswith(b"BCF"):
            raise DataError(f"{self.source.display_name}: is BCF; convert it to VCF first (bcftools view)")
        if b"\r" in line.rstrip(b"\r\n"):
            raise DataError(
                f"{self.source.display_name}: has carriage returns inside line 1 (old Macintosh line ends?); "
                "convert line ends to \\n"
            )

    def _site(self, fields: list[str]) -> Site:
        """Return the alleles and sequence of one row, given its columns. Raise `_BadRow` if the row can't be used."""
        if len(fields) < self.num_columns or not (fields[1].isascii() and fields[1].isdigit()):
            columns = (
                "CHROM, POS, ID, REF, ALT, QUAL, FILTER and INFO" if self.keep_lines else "CHROM, POS, ID, REF and ALT"
            )
            raise _BadRow("not a row of a VCF", f"expected {columns}, separated by tabs")
        contig, position_text, name, ref, alts = fields[:_NUM_COLUMNS]
        position = int(position_text[:_MAX_POSITION_DIGITS]) - 1
        site_reason = self._check_reference(contig, position, ref.upper())
        alleles = [
            Allele(contig, position, name, ref, alt, site_reason or _reason(ref.upper(), alt.upper()))
            for alt in alts.split(",")
        ]
        return _with_sequence(alleles, self.genome, self.radius)

    def _check_reference(self, contig: str, position: int, ref: str) -> str:
        """Return the reason why no allele of the row can be scored, or "" if there is no such reason.

        Raise `_BadRow` if the row contradicts the genome.
        """
        if contig.startswith("<"):
            return "contig of an assembly file"
        length = self.genome.length(contig)
        if length is None:
            raise _BadRow("contig not in the FASTA", _unknown_contig(contig, self.genome))
        if position in (-1, length):
            return "telomere"
        if ref == ".":
            return "no REF"
        if not 0 <= position <= length - len(ref):
            raise _BadRow(
                "position outside",
                f"position {position + 1}: REF is not inside contig {contig}, which has {length} bases",
            )
        found = self.genome.fetch(contig, position, position + len(ref))
        if not _agrees(ref, found):
            raise _BadRow(
                "REF disagrees",
                f"REF is {_short(ref)}, but {self.genome.display_name} has {_short(found.decode())} there "
                "(another assembly?)",
            )
        return _SHORT_CONTIG if length < self.min_bases else ""


def region_sites(genome: Genome, contig: str, start: int, end: int, radius: int, min_bases: int) -> Iterator[Site]:
    """Yield one site per base of the region `start` … `end - 1`, with the other three bases as alleles.

    An ambiguous base has all four bases as alleles, which get no score. `radius` and `min_bases` are as in
    `VariantReader`. Raises `DataError` if the genome lacks the region.
    """
    length = genome.length(contig)
    if length is None:
        raise DataError(f"--region: {_unknown_contig(contig, genome)}; pass one of them")
    if end > length:
        raise DataError(
            f"--region {contig}:{start + 1}-{end}: contig {contig} has {length} bases; pass an end of {length} or less"
        )
    site_reason = _SHORT_CONTIG if length < min_bases else ""
    for position in range(start, end):
        ref = genome.fetch(contig, position, position + 1).decode()
        alleles = [
            Allele(contig, position, ".", ref, alt, site_reason or _reason(ref, alt)) for alt in "ACGT" if alt != ref
        ]
        yield _with_sequence(alleles, genome, radius)


def _with_sequence(alleles: list[Allele], genome: Genome, radius: int) -> Site:
    """Return the site of `alleles`, which have one position, with its sequence if an allele gets a score."""
    if all(allele.reason for allele in alleles):
        return Site(alleles)
    contig, position = alleles[0].contig, alleles[0].position
    start = max(0, position - radius)
    end = min(genome.length(contig) or 0, position + radius + 1)
    return Site(alleles, genome.fetch(contig, start, end), position - start)


def _unknown_contig(contig: str, genome: Genome) -> str:
    return f"contig {contig!r} is not in {genome.display_name} (the file has {', '.join(genome.names[:4])} …)"


def _agrees(ref: str, found: bytes) -> bool:
    """Return whether REF agrees with the genome's bases at every position.

    N in REF agrees with every base. An IUPAC code in the genome agrees with itself, and with the alphabetically first
    base that the code stands for.
    """
    given = np.frombuffer(ref.encode("ascii", "replace"), np.uint8)
    bases = np.frombuffer(found, np.uint8)
    first_bases = np.frombuffer(found.translate(_FIRST_BASES), np.uint8)
    return bool(((given == bases) | (given == first_bases) | (given == ord("N"))).all())


def _check_alleles(fields: list[str]) -> None:
    """Raise `_BadRow` if REF or ALT of a file without a header is no allele: BED files have other columns there."""
    if len(fields) >= _NUM_COLUMNS and not (_LETTERS.fullmatch(fields[3]) and _ALLELES.fullmatch(fields[4])):
        raise _BadRow(
            "not a row of a VCF",
            f"REF {_short(fields[3])!r} and ALT {_short(fields[4])!r} are no alleles, and the file has no header of a "
            "VCF (is it BED?)",
        )


def _reason(ref: str, alt: str) -> str:
    """Return the reason why an allele gets no score, or "" if the allele gets a score."""
    if alt in ("", "."):
        return "no alternative allele"
    if alt == "*":
        return "overlapping deletion"
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return "breakend"
    if "<" in alt:
        return "symbolic allele"
    if len(ref) != len(alt):
        return "indel"
    if len(ref) > 1:
        return "several bases"
    if ref == "N":
        return "REF is N"
    if ref not in "ACGT" or alt not in "ACGT":
        return "not A, C, G, T"
    if ref == alt:
        return "ALT is REF"
    return ""


class _BadRow(Exception):  # noqa: N818 (never leaves this file)
    """Error for a row that can't be used. `kind` names the type of error. Skipped rows are counted by `kind`."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def _short(bases: str) -> str:
    return bases if len(bases) <= 12 else f"{bases[:12]}…"
