"""Random access to the contigs of a FASTA file, with only a few blocks in memory."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.contigs import Contig, RegionReader, check_scan, join_record_parts
from dnabert_rm.genome.fasta_scan import scan_range
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.utils.files import explain_full_temporary_folder


class Genome:
    """Contigs of a FASTA file, addressed by name and coordinates.

    A gzip file or a pipe has no random access, so its uncompressed content is copied to a temporary file. No index file
    is needed or written. Raises `DataError` if the file is not FASTA, repeats a contig name, or does not fit into the
    folder for temporary files.
    """

    def __init__(self, path: str):
        self.display_name = path
        self._copy = _temporary_copy(path)
        plain = self._copy.name if self._copy else path
        with open(plain, "rb") as stream:
            size = stream.seek(0, 2)
        pieces = scan_range(plain, path, 0, size, rna=False)
        check_scan(path, plain, pieces)
        self._contigs = join_record_parts("", 0, pieces)
        self._numbers = {contig.name: number for number, contig in enumerate(self._contigs)}
        self._reader = RegionReader(plain, path)

    def __enter__(self) -> Genome:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        if self._copy:
            self._copy.close()

    @property
    def contigs(self) -> list[Contig]:
        """The contigs, in file order."""
        return self._contigs

    @property
    def names(self) -> list[str]:
        """Names of the contigs, in file order."""
        return list(self._numbers)

    def length(self, name: str) -> int | None:
        """Return a contig's length in bases, or None if there is no such contig."""
        number = self._numbers.get(name)
        return None if number is None else self._contigs[number].length

    def fetch(self, name: str, start: int, end: int) -> bytes:
        """Return bases start … end - 1 of a contig in upper case. Calls are fastest if they read a contig in order."""
        return self.fetch_letters(name, start, end).tobytes().upper()

    def fetch_letters(self, name: str, start: int, end: int) -> NDArray[np.uint8]:
        """Return letters start … end - 1 of a contig, in upper or lower case as in the file, (end - start,) uint8."""
        contig = self._contigs[self._numbers[name]]
        anchor = contig.anchors[max(0, int(contig.anchors[:, 1].searchsorted(start, "right")) - 1)].tolist()
        return self._reader.read(self._numbers[name], start, end, (anchor[0], anchor[1]))


def _temporary_copy(path: str) -> tempfile._TemporaryFileWrapper | None:
    """Return a temporary file with the uncompressed content of a gzip file or a pipe.

    The temporary file is deleted when it is closed. Return None if `path` is an uncompressed regular file.
    """
    with Input(path, "a FASTA file") as source:
        if not source.is_compressed and source.size is not None:
            return None
        with explain_full_temporary_folder():
            plain = tempfile.NamedTemporaryFile(suffix=".fa")  # noqa: SIM115 (closed in __exit__)
            plain.writelines(source.lines())
            plain.flush()
    return plain
