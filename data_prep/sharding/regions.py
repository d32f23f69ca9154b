"""BED files of a build: the bases that --regions keeps and --exclude leaves out, as ranges along all contigs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.segments import ContigAxis
from data_prep.sharding.splits import similar_contig
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.genome.intervals import Intervals, intersect, merge, read_intervals, subtract
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import notice


@dataclass(frozen=True)
class Regions:
    """Intervals of the BED files of a build. Without `kept`, every base is kept. A base in both is excluded."""

    kept: Sequence[Intervals] = ()
    excluded: Sequence[Intervals] = ()

    def __bool__(self) -> bool:
        return bool(self.kept or self.excluded)

    def select(
        self, whole: NDArray[np.int64], contigs: Sequence[Contig], axis: ContigAxis
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the parts of `whole` that are not excluded, and the parts of these that are also kept.

        `whole` holds the ranges of the contigs in use. All ranges are (n, 2), sorted and disjoint. Their positions
        count along all contigs laid end to end (`axis`). Raises `DataError` for a file without any interval on a known
        contig.
        """
        not_excluded = kept = whole
        if self.excluded:
            not_excluded = kept = subtract(whole, intersect(whole, _union(self.excluded, contigs, axis)))
        if self.kept:
            kept = intersect(not_excluded, _union(self.kept, contigs, axis))
        return not_excluded, kept


NO_REGIONS = Regions()


def read_regions(kept: Sequence[str], excluded: Sequence[str]) -> Regions:
    """Read the BED files of --regions (`kept`) and --exclude (`excluded`). Raises `DataError` for an invalid file."""
    return Regions([read_intervals(path) for path in kept], [read_intervals(path) for path in excluded])


def _union(files: Sequence[Intervals], contigs: Sequence[Contig], axis: ContigAxis) -> NDArray[np.int64]:
    """Return the union of the intervals of all files, as sorted, disjoint ranges along all contigs, (n, 2)."""
    return merge(np.concatenate([_ranges(file, contigs, axis) for file in files]))


def _ranges(file: Intervals, contigs: Sequence[Contig], axis: ContigAxis) -> NDArray[np.int64]:
    """Return the intervals of one file as ranges along all contigs, in any order, (n, 2).

    An interval on NAME is on the contig NAME of every genome, and an interval on GENOME:NAME on one contig. Intervals
    on other names are left out, and parts beyond a contig's end are cut off. A notice counts both.
    """
    numbers = _contigs_named(file.contig_names, contigs)
    counts = np.array([len(found) for found in numbers], dtype=np.int64)
    first = np.cumsum(counts) - counts
    copies = counts[file.contig]
    _check_names(file, copies, contigs)
    row = np.repeat(np.arange(len(file)), copies)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
    contig = np.concatenate([np.array(found, dtype=np.int64) for found in numbers])[first[file.contig[row]] + copy]
    length = axis.lengths[contig]
    beyond = np.flatnonzero(file.end[row] > length)
    if len(beyond):
        one = contigs[contig[beyond[0]]]
        notice(
            f"warning: {file.display_name}: {len(np.unique(row[beyond])):,} intervals are cut at their contig's end "
            f"(first: line {file.line[row[beyond[0]]]}, but {one.genome}:{one.name} has {one.length:,} bases)"
        )
    ends = np.stack([np.minimum(file.start[row], length), np.minimum(file.end[row], length)], axis=1)
    return ends + axis.starts[contig, None]


def _contigs_named(names: Sequence[str], contigs: Sequence[Contig]) -> list[list[int]]:
    """Return, for each NAME or GENOME:NAME, the indices of the contigs with this name."""
    numbers: dict[str, list[int]] = {name: [] for name in names}
    for index, contig in enumerate(contigs):
        for name in (contig.name, f"{contig.genome}:{contig.name}"):
            if name in numbers:
                numbers[name].append(index)
    return [numbers[name] for name in names]


def _check_names(file: Intervals, copies: NDArray[np.int64], contigs: Sequence[Contig]) -> None:
    """Count intervals on unknown contigs in a notice. Raises `DataError` if no interval is on a known contig.

    `copies` (n,) holds, for each interval, the number of contigs with its name.
    """
    unknown = np.flatnonzero(copies == 0)
    if not len(unknown):
        return
    name = file.contig_names[file.contig[unknown[0]]]
    line = file.line[unknown[0]]
    near = similar_contig(contigs, name)
    if len(unknown) == len(file):
        raise DataError(
            f"{file.display_name}, line {line}: no genome has a contig {name!r}, nor any other contig of this file; "
            f"did you mean {near!r}?"
        )
    notice(
        f"warning: {file.display_name}: {len(unknown):,} of {len(file):,} intervals are on contigs that no genome has "
        f"(first: line {line}, {name!r}; did you mean {near!r}?)"
    )
