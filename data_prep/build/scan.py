"""The first pass over all inputs: checksums and scans in parallel, then a check of the whole."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.parallel import run_all
from data_prep.build.sources import Source, source_info
from dnabert_rm.utils.errors import DataError
from dnabert_rm.genome.contigs import Contig, check_scan, join_pieces
from dnabert_rm.genome.fasta_scan import Piece, scan_range, scan_ranges
from dnabert_rm.utils.progress import notice, progress_bar
from dnabert_rm.data.manifest import SourceInfo


def scan_files(
    sources: Sequence[Source], paths: Mapping[int, str], rna: bool, executor: Executor, checksums: bool = False
) -> tuple[list[SourceInfo], dict[int, list[Piece]]]:
    """The pieces of the files whose uncompressed bytes lie in `paths`, by the source's number.

    With `checksums` also the `SourceInfo` of every source, made meanwhile: a checksum keeps one
    worker busy, while a file is scanned by all. Raises `DataError` for what is not FASTA.
    """
    ranges = [(i, start, stop) for i, path in paths.items() for start, stop in scan_ranges(Path(path).stat().st_size)]
    tasks: list[Callable[[], Any]] = [partial(source_info, source) for source in sources if checksums]
    num_checksums = len(tasks)
    tasks += [partial(scan_range, paths[i], sources[i].path, start, stop, rna) for i, start, stop in ranges]
    results: list[Any] = [None] * len(tasks)
    with progress_bar("scan", sum(stop - start for _, start, stop in ranges), "base") as bar:
        for index, result in run_all(executor, operator.call, tasks):
            results[index] = result
            if index >= num_checksums:
                bar.update(ranges[index - num_checksums][2] - ranges[index - num_checksums][1])
    pieces: dict[int, list[Piece]] = {i: [] for i in paths}
    for (i, *_), found in zip(ranges, results[num_checksums:], strict=True):
        pieces[i] += found
    return results[:num_checksums], pieces


def joined_contigs(
    sources: Sequence[Source], paths: Mapping[int, str], pieces: Mapping[int, list[Piece]]
) -> list[Contig]:
    """The contigs of every file, in the order of the input.

    Raises `DataError` for a file of proteins, and for a contig that stands in a genome twice.
    """
    contigs: list[Contig] = []
    for number, source in enumerate(sources):
        mine = pieces[number]
        check_scan(source.path, paths[number], mine)
        if uracils := sum(piece.uracils for piece in mine):
            notice(f"{source.path}: {uracils:,} letters U are left out; --rna reads them as T")
        contigs += join_pieces(source.genome, number, mine)
    _check_names(sources, contigs)
    return contigs


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
