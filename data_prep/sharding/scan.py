"""First pass over all inputs: compute checksums and find contigs in parallel, then check the contigs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.parallel import run_all
from data_prep.sharding.sources import Source, source_info
from dnabert_rm.data.manifest import SourceInfo
from dnabert_rm.genome.contigs import Contig, check_scan, join_record_parts
from dnabert_rm.genome.fasta_scan import RecordPart, scan_range, scan_ranges
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import notice, progress_bar


def scan_files(
    sources: Sequence[Source], paths: Mapping[int, str], rna: bool, executor: Executor, checksums: bool = False
) -> tuple[list[SourceInfo], dict[int, list[RecordPart]]]:
    """Scan uncompressed files. Return the checksums of all inputs, and the records of each scanned file.

    Several workers scan one file, so a long record consists of several `RecordPart` objects. Other workers compute
    checksums at the same time, one file each.

    Args:
        sources: All input files.
        paths: Paths of the uncompressed files to scan, keyed by index in `sources`. The returned records have the same
            keys.
        rna: Read U as T.
        checksums: Also compute the `SourceInfo` (with checksum) of every input. If false, an empty list is returned
            instead.

    Raises `DataError` for a file that is not FASTA.
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
                _, start, stop = ranges[index - num_checksums]
                bar.update(stop - start)
    pieces: dict[int, list[RecordPart]] = {i: [] for i in paths}
    for (i, *_), found in zip(ranges, results[num_checksums:], strict=True):
        pieces[i] += found
    return results[:num_checksums], pieces


def join_contigs(
    sources: Sequence[Source], paths: Mapping[int, str], pieces: Mapping[int, list[RecordPart]]
) -> list[Contig]:
    """Join the parts of records that several workers scanned. Return the contigs of all files, in input order.

    The lists in `pieces` are emptied.

    Raises `DataError` for a file of proteins, for RNA without `--rna`, and for a contig name that is twice in a genome.
    """
    contigs: list[Contig] = []
    for number, source in enumerate(sources):
        check_scan(source.path, paths[number], pieces[number], rna_advice="pass --rna to read U as T")
        if uracils := sum(piece.uracils for piece in pieces[number]):
            notice(f"{source.path}: {uracils:,} letters U are left out; pass --rna to read them as T")
        contigs += join_record_parts(source.genome, number, pieces[number])
    _check_names(sources, contigs)
    return contigs


def _check_names(sources: Sequence[Source], contigs: Sequence[Contig]) -> None:
    """Raise `DataError` if two contigs of a genome have the same name."""
    seen: dict[tuple[str, str], Contig] = {}
    for contig in contigs:
        other = seen.setdefault((contig.genome, contig.name), contig)
        if other is not contig:
            raise DataError(
                f"{sources[contig.source].path}: contig {contig.name!r} of genome {contig.genome!r} is also in "
                f"{sources[other.source].path}; give one of the files another genome name (NAME=PATH)"
            )
