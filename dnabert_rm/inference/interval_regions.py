"""Regions that intervals and a genome define, as input of `predict` and `embed`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.annotation import read_annotation
from dnabert_rm.genome.interval_windows import MINUS, find_contigs, place
from dnabert_rm.genome.intervals import Intervals
from dnabert_rm.genome.kmer import reverse_complement
from dnabert_rm.genome.reference import Genome
from dnabert_rm.inference.inference_settings import InferenceSettings, PredictSettings
from dnabert_rm.inference.sequence_input import Region
from dnabert_rm.utils.errors import DataError

BLOCK_BASES = 1 << 20
"""Bases of an interval that are read at a time."""
Regions = Iterator[tuple[Region, Iterator[bytes]]]


@contextlib.contextmanager
def interval_regions(settings: InferenceSettings, forward_only: bool) -> Iterator[tuple[Regions, int]]:
    """Yield the regions of the intervals in file order, each with its sequence, and their number of bases.

    With --window, a window that reaches beyond its contig is cut there. `forward_only` reads every interval from the
    forward strand. Raises `DataError` with the line number for an interval that the genome does not have, or that a
    bedGraph file can't hold.
    """
    assert settings.regions is not None and settings.fasta is not None
    found = read_annotation(settings.regions, settings.selection)
    assert found.details is not None
    is_minus = (found.details.strand == MINUS) & (not settings.ignore_strand)
    with Genome(str(settings.fasta)) as genome:
        contig, contigs, labels = find_contigs(found, genome), genome.contigs, found.details.name
        lengths = np.array([one.length for one in contigs], dtype=np.int64)[contig]
        check_intervals(found, contig >= 0, lengths, genome.display_name)
        start, end = found.start, found.end
        if settings.window is not None:
            start = place(found, settings.anchor, settings.window, settings.upstream_bases, settings.ignore_strand)
            start, end = np.clip(start, 0, lengths), np.clip(start + settings.window, 0, lengths)
        if isinstance(settings, PredictSettings) and settings.is_bedgraph:
            check_sorted(found, contig, start, end)

        def read() -> Regions:
            for row in range(len(found)):
                first, last, name = int(start[row]), int(end[row]), contigs[contig[row]].name
                turned = bool(is_minus[row]) and not forward_only
                yield (
                    Region(name, first, last, "-" if turned else "+", labels[row]),
                    blocks(genome, name, first, last, turned),
                )

        yield read(), int((end - start).sum())


def blocks(genome: Genome, name: str, start: int, end: int, reverse: bool) -> Iterator[bytes]:
    """Yield the bases of an interval in blocks, or those of its reverse complement."""
    firsts = range(start, end, BLOCK_BASES)
    for first in reversed(firsts) if reverse else firsts:
        sequence = genome.fetch(name, first, min(first + BLOCK_BASES, end))
        yield reverse_complement(sequence) if reverse else sequence


def check_sorted(found: Intervals, contig: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    """Raise `DataError` unless intervals are sorted by contig and start and do not overlap, as bedGraph demands."""
    is_new = np.append(True, contig[1:] != contig[:-1])
    returns = np.zeros(len(contig), dtype=bool)
    _, first = np.unique(contig[is_new], return_index=True)
    returns[np.flatnonzero(is_new)] = True
    returns[np.flatnonzero(is_new)[first]] = False
    bad = np.flatnonzero(returns | (~is_new & np.append(False, start[1:] < end[:-1])))
    if len(bad):
        raise DataError(
            f"{found.display_name}, line {found.line[bad[0]]}: bedGraph needs sorted intervals that do not overlap; "
            "sort the file (sort -k1,1 -k2,2n), merge its intervals, or write .bed"
        )


def check_intervals(found: Intervals, is_known: NDArray[np.bool_], lengths: NDArray[np.int64], genome: str) -> None:
    """Raise `DataError` for the first interval whose contig is unknown, or that ends behind its contig.

    `is_known` (n,) says whether the genome has the interval's contig; `lengths` (n,) is the contig's length.
    """
    bad = np.flatnonzero(~is_known | (found.end > lengths))
    if not len(bad):
        return
    row = int(bad[0])
    name = found.contig_names[found.contig[row]]
    where = f"{found.display_name}, line {found.line[row]}"
    if not is_known[row]:
        raise DataError(f"{where}: {genome} has no contig {name}; remove the line, or pass the right genome")
    raise DataError(
        f"{where}: ends at {found.end[row]}, but {name} has {lengths[row]} bases in {genome}; pass the right genome"
    )
