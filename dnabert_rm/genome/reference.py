"""Any stretch of any contig of a FASTA file, in memory of a few blocks."""

from __future__ import annotations

import tempfile

from dnabert_rm.genome.contigs import RegionReader, check_scan, join_pieces
from dnabert_rm.genome.fasta_scan import scan_range
from dnabert_rm.genome.fasta_stream import Input


class Genome:
    """Contigs by name. A gzip file is decompressed into a temporary one, since gzip can't be read from its middle.

    `DataError` for what is not FASTA, or names a contig twice.
    """

    def __init__(self, path: str):
        self.shown = path
        self._unpacked = _unpacked(path)
        plain = self._unpacked.name if self._unpacked else path
        with open(plain, "rb") as stream:
            size = stream.seek(0, 2)
        pieces = scan_range(plain, path, 0, size, rna=False)
        check_scan(path, plain, pieces)
        self._contigs = join_pieces("", 0, pieces)
        self._numbers = {contig.name: number for number, contig in enumerate(self._contigs)}
        self._reader = RegionReader(plain, path)

    def __enter__(self) -> Genome:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        if self._unpacked:
            self._unpacked.close()

    @property
    def names(self) -> list[str]:
        """The contigs' names."""
        return list(self._numbers)

    def length(self, name: str) -> int | None:
        """Bases of a contig; None where there is none of this name."""
        number = self._numbers.get(name)
        return None if number is None else self._contigs[number].length

    def fetch(self, name: str, start: int, end: int) -> bytes:
        """Bases start … end - 1 of a contig, upper case; quickest where calls go through a contig in order."""
        contig = self._contigs[self._numbers[name]]
        at = contig.anchors[max(0, int(contig.anchors[:, 1].searchsorted(start, "right")) - 1)].tolist()
        return self._reader.read(self._numbers[name], start, end, (at[0], at[1])).tobytes().upper()


def _unpacked(path: str) -> tempfile._TemporaryFileWrapper | None:
    """The decompressed bytes of a gzip file, gone when closed; None where `path` is not compressed."""
    with Input(path, "a FASTA file") as source:
        if not source.is_packed:
            return None
        plain = tempfile.NamedTemporaryFile(suffix=".fa")  # noqa: SIM115 (closed in __exit__)
        plain.writelines(source.lines())
    plain.flush()
    return plain
