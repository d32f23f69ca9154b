"""Read variants from a VCF, check them against the genome, and fetch the sequence around each variant.

Positions are 0-based, except in the VCF and in messages, where they are 1-based.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import DataError


@dataclass(frozen=True)
class Allele:
    """One pair of REF and ALT in a VCF row. `reason` says why the allele gets no score; empty if it gets one."""

    contig: str
    position: int
    """0-based."""
    name: str
    ref: str
    alt: str
    reason: str = ""


@dataclass(frozen=True)
class Site:
    """The alleles of one VCF row and the sequence around them. `sequence` is empty if no allele gets a score."""

    alleles: list[Allele]
    sequence: bytes = b""
    target: int = 0
    """Index of the variant in `sequence`."""


@dataclass
class VariantReader:
    """Reader of a VCF.

    A row that is invalid or contradicts the genome raises an error. With `drop`, such rows are counted and skipped.
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
        """Yield one site per row of the VCF, in file order. Raise `DataError` with the line number of a bad row."""
        for number, line in enumerate(self.source.lines(), 1):
            if number == 1 and line.startswith(b"BCF"):
                raise DataError(f"{self.source.display_name}: is BCF; convert it to VCF first (bcftools view)")
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            if not text or text.startswith("#"):
                continue
            try:
                yield self._site(text.split("\t"))
            except _BadRow as error:
                if not self.drop:
                    raise DataError(
                        f"{self.source.display_name}, line {number}: {error}; fix the row, or pass"
                        " --bad-rows drop to skip such rows"
                    ) from None
                self.dropped[error.kind] += 1

    def _site(self, fields: list[str]) -> Site:
        """Return the alleles and sequence of one row, given its columns. Raise `_BadRow` if it can't be used."""
        if len(fields) < 5 or not fields[1].isdecimal():
            raise _BadRow("not a row of a VCF", "expected CHROM, POS, ID, REF and ALT, separated by tabs")
        contig = fields[0]
        position = int(fields[1]) - 1
        ref = fields[3].upper()
        self._check_reference(contig, position, ref)
        alleles = [
            Allele(contig, position, fields[2], fields[3], alt, self._reason(contig, ref, alt.upper()))
            for alt in fields[4].split(",")
        ]
        if all(allele.reason for allele in alleles):
            return Site(alleles)
        start = max(0, position - self.radius)
        end = min(self.genome.length(contig) or 0, position + self.radius + 1)
        return Site(alleles, self.genome.fetch(contig, start, end), position - start)

    def _check_reference(self, contig: str, position: int, ref: str) -> None:
        length = self.genome.length(contig)
        if length is None:
            known = ", ".join(self.genome.names[:4])
            raise _BadRow(
                "not in the FASTA", f"contig {contig!r} is not in {self.genome.display_name} (the file has {known} …)"
            )
        if not 0 <= position <= length - len(ref):
            raise _BadRow(
                "position outside",
                f"position {position + 1}: REF is not inside contig {contig}, which has {length} bases",
            )
        found = self.genome.fetch(contig, position, position + len(ref)).decode()
        if found != ref:
            raise _BadRow(
                "REF disagrees",
                f"REF is {_short(ref)}, but {self.genome.display_name} has {_short(found)} there (another assembly?)",
            )

    def _reason(self, contig: str, ref: str, alt: str) -> str:
        """Return why an allele gets no score, or "" if it gets one."""
        if alt in ("", "."):
            return "no alternative allele"
        if alt == "*" or any(symbol in alt for symbol in "<>[]."):
            return "symbolic allele"
        if len(ref) != len(alt):
            return "indel"
        if len(ref) > 1:
            return "several bases"
        if ref not in "ACGT" or alt not in "ACGT":
            return "not A, C, G, T"
        if ref == alt:
            return "ALT is REF"
        if (self.genome.length(contig) or 0) < self.min_bases:
            return "contig shorter than a k-mer"
        return ""


class _BadRow(Exception):  # noqa: N818 (never leaves this file)
    """Error for a row that can't be used. `kind` is the category under which the row is counted."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def _short(bases: str) -> str:
    return bases if len(bases) <= 12 else f"{bases[:12]}…"
