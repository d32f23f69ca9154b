"""Outputs of `score-variants`: a CSV table, or the input VCF with scores in its INFO column."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from dnabert_rm.genome.vcf import Site
from dnabert_rm.inference.output_files import open_gzip
from dnabert_rm.utils.errors import DataError

_INFO_INDEX = 7
_NOT_IN_INFO = re.compile("[^A-Za-z0-9]+")


@dataclass(frozen=True)
class ScoredSite:
    """A site with the text of each allele's score and reason, exactly one of which is empty."""

    site: Site
    scores: list[str]
    reasons: list[str]


class ScoreFile(Protocol):
    """An output file that is written site by site."""

    def check_header(self, comments: Iterable[bytes]) -> None:
        """Raise `DataError` if scores can't be added to a VCF with these header lines."""

    def write(self, sites: Sequence[ScoredSite]) -> None:
        """Write the alleles of several sites."""

    def finish(self, comments: Iterable[bytes]) -> None:
        """Write the lines after the last site."""


class CsvScores:
    """CSV table with one row per allele."""

    def __init__(self, stream: Any) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        self._writer.writerow(["chrom", "pos", "id", "ref", "alt", "score", "reason"])

    def check_header(self, comments: Iterable[bytes]) -> None:
        """Accept any header, because the table has none of it."""

    def write(self, sites: Sequence[ScoredSite]) -> None:
        """Write one row per allele."""
        for scored in sites:
            for allele, score, reason in zip(scored.site.alleles, scored.scores, scored.reasons, strict=True):
                position = allele.position + 1
                row = [allele.contig, position, allele.name, allele.ref, allele.alt, score, reason]
                self._writer.writerow(row)

    def finish(self, comments: Iterable[bytes]) -> None:
        """Ignore the lines after the last site."""


@dataclass
class VcfScores:
    """Copy of a VCF with two more INFO fields and their header lines; all other bytes are unchanged.

    The field `name` has one number per ALT, "." without a score. The field `name`_REASON has one reason per ALT, "."
    with a score. It is absent from a row whose alleles all have scores.
    """

    stream: BinaryIO
    source: str
    """Name of the VCF in messages."""
    name: str
    description: str
    """Description of the score for the header."""
    _has_header: bool = False

    def check_header(self, comments: Iterable[bytes]) -> None:
        """Raise `DataError` if the header has a field of the same name, or lacks the line #CHROM."""
        lines = list(comments)
        for line in lines:
            declared = re.match(rb"##INFO=<ID=([^,>]*)", line)
            if declared and declared[1].decode("utf-8", "replace") in (self.name, self._reason_name):
                self._raise_exists(declared[1].decode())
        if not any(line.startswith(b"#CHROM") for line in lines):
            raise DataError(
                f"{self.source}: has no header line #CHROM before the first row; add it, or write a .csv file"
            )

    @property
    def _reason_name(self) -> str:
        return f"{self.name}_REASON"

    def _raise_exists(self, name: str) -> None:
        raise DataError(f"{self.source}: has an INFO field {name} already; pass another name with --info-name")

    def write(self, sites: Sequence[ScoredSite]) -> None:
        """Write rows, each after the comments before it."""
        for scored in sites:
            self._write_comments(scored.site.comments)
            self.stream.write(self._row(scored))

    def finish(self, comments: Iterable[bytes]) -> None:
        """Write the comments after the last row; without rows, these are the header."""
        self._write_comments(comments)

    def _write_comments(self, comments: Iterable[bytes]) -> None:
        for line in comments:
            if line.startswith(b"#CHROM") and not self._has_header:
                end = line[len(line.rstrip(b"\r\n")) :] or b"\n"
                for text in self._header_lines():
                    self.stream.write(text.encode() + end)
                self._has_header = True
            self.stream.write(line)

    def _header_lines(self) -> list[str]:
        score = self.description.replace("\\", "\\\\").replace('"', '\\"')
        reasons = f"Why an ALT has no {self.name}, one per ALT; . for an ALT with a score"
        return [
            f'##INFO=<ID={self.name},Number=A,Type=Float,Description="{" ".join(score.split())}">',
            f'##INFO=<ID={self._reason_name},Number=.,Type=String,Description="{reasons}">',
        ]

    def _row(self, scored: ScoredSite) -> bytes:
        fields = [f"{self.name}={','.join(score or '.' for score in scored.scores)}"]
        if any(scored.reasons):
            # INFO values have no spaces or commas.
            words = [_NOT_IN_INFO.sub("_", reason) or "." for reason in scored.reasons]
            fields.append(f"{self._reason_name}={','.join(words)}")
        names = {entry.partition("=")[0] for entry in scored.site.info.split(";")}
        for name in (self.name, self._reason_name):
            if name in names:
                self._raise_exists(name)
        line = scored.site.line
        end = line[len(line.rstrip(b"\r\n ")) :].lstrip(b" ")
        columns = line.rstrip(b"\r\n ").split(b"\t", _INFO_INDEX + 1)
        info = columns[_INFO_INDEX]
        kept = [] if info in (b"", b".") else [info.removesuffix(b";")]
        columns[_INFO_INDEX] = b";".join([*kept, *(text.encode() for text in fields)])
        return b"\t".join(columns) + end


@contextlib.contextmanager
def open_vcf(path: Path, is_compressed: bool) -> Iterator[BinaryIO]:
    """Open a VCF for writing; if compressed, as bgzip where pysam is installed, and otherwise as plain gzip."""
    if is_compressed and find_spec("pysam"):
        from pysam import BGZFile

        with contextlib.closing(BGZFile(str(path), "wb", None)) as blocks:
            yield blocks  # type: ignore[misc]
        return
    with open_gzip(path) if is_compressed else open(path, "wb") as stream:
        yield stream
