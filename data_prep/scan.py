"""The first pass over all inputs: scan every file in parallel, then check the whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from data_prep.contigs import Contig, check_scan, join_pieces
from data_prep.fasta import Piece, scan_range, scan_ranges
from data_prep.parallel import run_all
from data_prep.progress import notice, progress_bar
from data_prep.sources import Source
from dnabert_rm.errors import DataError

ScanTask = tuple[str, str, int, int, bool]


def scan_sources(sources: Sequence[Source], paths: Sequence[str], rna: bool, executor: Executor) -> list[Contig]:
    """The contigs of every file, in the order of the input; `paths` are the uncompressed files.

    Raises `DataError` for the first thing that is not FASTA of DNA.
    """
    ranges = [
        (i, start, stop) for i, path in enumerate(paths) for start, stop in scan_ranges(Path(path).stat().st_size)
    ]
    tasks: list[ScanTask] = [(paths[i], sources[i].path, start, stop, rna) for i, start, stop in ranges]
    pieces: list[list[Piece]] = [[] for _ in tasks]
    with progress_bar("scan", sum(stop - start for _, start, stop in ranges)) as bar:
        for index, found in run_all(executor, _scan_task, tasks):
            pieces[index] = found
            bar.update(ranges[index][2] - ranges[index][1])
    contigs: list[Contig] = []
    for number, source in enumerate(sources):
        mine = [piece for (i, *_), found in zip(ranges, pieces, strict=True) if i == number for piece in found]
        check_scan(source.path, paths[number], mine)
        if uracils := sum(piece.uracils for piece in mine):
            notice(f"{source.path}: {uracils:,} letters U are left out; --rna reads them as T")
        contigs += join_pieces(source.genome, number, mine)
    _check_names(sources, contigs)
    return contigs


def _scan_task(task: ScanTask) -> list[Piece]:
    return scan_range(*task)


def _check_names(sources: Sequence[Source], contigs: Sequence[Contig]) -> None:
    """Within a genome of several files a contig may stand in one of them only."""
    seen: dict[tuple[str, str], Contig] = {}
    for contig in contigs:
        other = seen.setdefault((contig.genome, contig.name), contig)
        if other is not contig:
            raise DataError(
                f"{sources[contig.source].path}: contig {contig.name!r} of genome {contig.genome!r} is in "
                f"{sources[other.source].path} too; give one file another genome's name (NAME=PATH)"
            )
