"""Read variants from a VCF, check them against the genome, and fetch the sequence around each variant.

Positions are 0-based, except in the VCF and in messages, where they are 1-based.

Rows are interpreted according to VCF 4.3, sections 1.4 and 1.6.1.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import DataError

_NUM_COLUMNS = 5
"""CHROM, POS, ID, REF and ALT; the columns after them are not read."""
_MAX_POSITION_DIGITS = 18
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
    dropped: Counter[str] = field(default_factory=Counter)

    def sites(self) -> Iterator[Site]:
        """Yield one site per row of the VCF, in file order.

        Raises `DataError` if the file is empty or not a VCF. If `drop` is false, a row that is invalid or contradicts
        the genome also raises `DataError`, with the line number.
        """
        is_empty = True
        for number, line in self._lines():
            is_empty = is_empty and not line.strip()
            if number == 1:
                self._check_first_line(line)
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            if not text.strip() or text.startswith("#"):
                continue
            try:
                yield self._site(text.split("\t", _NUM_COLUMNS)[:_NUM_COLUMNS])
            except _BadRow as error:
                if not self.drop:
                    raise DataError(
                        f"{self.source.display_name}, line {number}: {error}; fix the row, or pass"
                        " --bad-rows drop to skip such rows"
                    ) from None
                self.dropped[error.kind] += 1
        if is_empty:
            raise DataError(f"{self.source.display_name}: is empty; pass a VCF file")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and content of each line. A long row may be cut after ALT, the last column that is needed.

        A row is long, for example, if it has 100,000 samples. Long comment lines may be cut too.
        """
        number = 1
        kept: list[bytes] = []
        num_tabs = 0
        for part in self.source.lines():
            if not kept:
                kept = [part.removeprefix(codecs.BOM_UTF8) if number == 1 else part]
                num_tabs = kept[0].count(b"\t")
            elif num_tabs < _NUM_COLUMNS and not kept[0].startswith(b"#"):
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
        if len(fields) < _NUM_COLUMNS or not (fields[1].isascii() and fields[1].isdigit()):
            raise _BadRow("not a row of a VCF", "expected CHROM, POS, ID, REF and ALT, separated by tabs")
        contig, position_text, name, ref, alts = fields
        position = int(position_text[:_MAX_POSITION_DIGITS]) - 1
        site_reason = self._check_reference(contig, position, ref.upper())
        alleles = [
            Allele(contig, position, name, ref, alt, site_reason or _reason(ref.upper(), alt.upper()))
            for alt in alts.split(",")
        ]
        if all(allele.reason for allele in alleles):
            return Site(alleles)
        start = max(0, position - self.radius)
        end = min(self.genome.length(contig) or 0, position + self.radius + 1)
        return Site(alleles, self.genome.fetch(contig, start, end), position - start)

    def _check_reference(self, contig: str, position: int, ref: str) -> str:
        """Return the reason why no allele of the row can be scored, or "" if there is no such reason.

        Raise `_BadRow` if the row contradicts the genome.
        """
        if contig.startswith("<"):
            return "contig of an assembly file"
        length = self.genome.length(contig)
        if length is None:
            known = ", ".join(self.genome.names[:4])
            raise _BadRow(
                "contig not in the FASTA",
                f"contig {contig!r} is not in {self.genome.display_name} (the file has {known} …)",
            )
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
        return "contig shorter than a k-mer" if length < self.min_bases else ""


def _agrees(ref: str, found: bytes) -> bool:
    """Return whether REF agrees with the genome's bases at every position.

    N in REF agrees with every base. An IUPAC code in the genome agrees with itself, and with the alphabetically first
    base that the code stands for.
    """
    given = np.frombuffer(ref.encode("ascii", "replace"), np.uint8)
    bases = np.frombuffer(found, np.uint8)
    first_bases = np.frombuffer(found.translate(_FIRST_BASES), np.uint8)
    return bool(((given == bases) | (given == first_bases) | (given == ord("N"))).all())


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
