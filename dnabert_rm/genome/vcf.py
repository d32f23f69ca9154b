"""Variants from a VCF, checked against the genome, each with the sequence around it.

Positions are 0-based but in the VCF itself and in the output, where they count from 1 as VCF has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import DataError

BAD_ROWS = ("fail", "drop")


@dataclass(frozen=True)
class Allele:
    """One REF and one ALT of a VCF's line; `reason` why it gets no score, empty where it gets one."""

    contig: str
    position: int
    """0-based."""
    name: str
    ref: str
    alt: str
    reason: str = ""


@dataclass(frozen=True)
class Site:
    """The alleles of one line of a VCF, and the bases around; `sequence` is empty where none of them gets a score."""

    alleles: list[Allele]
    sequence: bytes = b""
    target: int = 0
    """Where in `sequence` the variant is."""


@dataclass
class VariantReader:
    """Reads a VCF; rows that contradict the genome end it, or with `drop` are left out and counted."""

    source: Input
    genome: Genome
    radius: int
    """Bases on each side of a variant, fewer at a contig's ends."""
    min_bases: int
    """A shorter contig has no token."""
    drop: bool
    dropped: Counter[str] = field(default_factory=Counter)

    def sites(self) -> Iterator[Site]:
        """The lines of the VCF in order; `DataError` names the line of a bad row."""
        for number, line in enumerate(self.source.lines(), 1):
            if number == 1 and line.startswith(b"BCF"):
                raise DataError(f"{self.source.shown}: is BCF; write it as VCF first (bcftools view)")
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            if not text or text.startswith("#"):
                continue
            try:
                yield self._site(text.split("\t"))
            except _BadRow as bad:
                if not self.drop:
                    raise DataError(
                        f"{self.source.shown}, line {number}: {bad}; mend the row, or leave such rows out with"
                        " --bad-rows drop"
                    ) from None
                self.dropped[bad.kind] += 1

    def _site(self, fields: list[str]) -> Site:
        """One line's alleles and sequence."""
        if len(fields) < 5 or not fields[1].isdecimal():
            raise _BadRow("not a row of a VCF", "CHROM, POS, ID, REF, ALT expected, with tabs between")
        contig, position, ref = fields[0], int(fields[1]) - 1, fields[3].upper()
        self._check_place(contig, position, ref)
        alleles = [
            Allele(contig, position, fields[2], fields[3], alt, self._reason(contig, ref, alt.upper()))
            for alt in fields[4].split(",")
        ]
        if all(allele.reason for allele in alleles):
            return Site(alleles)
        start = max(0, position - self.radius)
        end = min(self.genome.length(contig) or 0, position + self.radius + 1)
        return Site(alleles, self.genome.fetch(contig, start, end), position - start)

    def _check_place(self, contig: str, position: int, ref: str) -> None:
        length = self.genome.length(contig)
        if length is None:
            known = ", ".join(self.genome.names[:4])
            raise _BadRow("not in the FASTA", f"contig {contig!r} is not in {self.genome.shown} (it has {known} …)")
        if not 0 <= position <= length - len(ref):
            raise _BadRow("position outside", f"position {position + 1}: contig {contig} has {length} bases")
        found = self.genome.fetch(contig, position, position + len(ref)).decode()
        if found != ref:
            raise _BadRow(
                "REF disagrees",
                f"REF is {_short(ref)}, but {self.genome.shown} has {_short(found)} there (another assembly?)",
            )

    def _reason(self, contig: str, ref: str, alt: str) -> str:
        """Why an allele gets no score, "" where it gets one."""
        if alt in ("", "."):
            return "no alternative allele"
        if alt == "*" or any(sign in alt for sign in "<>[]."):
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
    """What is wrong with a row: its kind, and a sentence."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def _short(bases: str) -> str:
    return bases if len(bases) <= 12 else f"{bases[:12]}…"
