"""Read the intervals of all files, and place a labelled window at each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.labels.options import LabelsSettings
from data_prep.labels.windows import Dropped, LabelledWindows, SequenceReader, composition, join
from dnabert_rm.genome.annotation import read_annotation
from dnabert_rm.genome.interval_flags import Selection
from dnabert_rm.genome.interval_windows import MINUS, UNSTRANDED, find_contigs, place
from dnabert_rm.genome.intervals import Intervals
from dnabert_rm.genome.reference import Genome
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.progress import notice

POSITIVE, NEGATIVE = "1", "0"
"""Labels of the intervals of a single file, and of negatives beside them."""
NEGATIVE_CLASS = "negative"
"""Label of made negatives beside several classes."""
_NO_CONTIG = "contig is not in the genome"
_OUTSIDE = "reaches beyond its contig"
_TWO_LABELS = "same window with two labels"
_REPEATED = "same window as an earlier interval"
_UNKNOWN = "has letters other than A, C, G, T"
_FIXES = {
    _NO_CONTIG: "pass the genome that the intervals were made for",
    _OUTSIDE: "choose a smaller --window",
    _TWO_LABELS: "remove the intervals that are in several files or have several labels",
    _UNKNOWN: "choose a smaller --window or raise --unknown-bases",
}
"""What to change if most windows are dropped for a reason."""


@dataclass(frozen=True, eq=False)
class Source:
    """The intervals of a file, the class name of the file, and each interval's contig in the genome (-1: none)."""

    class_name: str
    path: str
    intervals: Intervals
    contig: NDArray[np.int64]


def read_sources(settings: LabelsSettings, genome: Genome) -> list[Source]:
    """Read the files of intervals. `NAME=FILE` gives a file's class another name than that of the file."""
    sources = []
    for word in settings.files:
        name, path = class_and_path(word)
        intervals = read_annotation(path, settings.selection)
        sources.append(Source(name, path, intervals, find_contigs(intervals, genome)))
    names = [source.class_name for source in sources]
    if settings.label == "file":
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two files have the class name {repeated[0]}; pass NAME=FILE to name them")
        if NEGATIVE_CLASS in names and settings.negatives in ("genome", "shuffled"):
            raise ConfigError(f"{NEGATIVE_CLASS} is the label of made negatives; pass NAME=FILE to name the file")
    return sources


def class_and_path(word: str) -> tuple[str, str]:
    """Split NAME=FILE. Without a name, the class has the file's name up to the first dot.

    A word in an existing folder, such as `k=1/peaks.bed`, is a path.
    """
    name, equals, path = word.partition("=")
    if not equals or not path or os.path.exists(word) or os.path.isdir(os.path.dirname(word)):
        return os.path.basename(word).split(".")[0], word
    return name, path


def place_windows(
    settings: LabelsSettings, sources: list[Source], reader: SequenceReader, dropped: Dropped
) -> LabelledWindows:
    """Return the labelled windows of all intervals that can be used, in file order."""
    parts = []
    wanted = None
    if settings.overlap is not None:
        wanted = read_annotation(settings.overlap, Selection(), warn=False)
        warn_of_outside(wanted, reader)
    for source in sources:
        found, details = source.intervals, source.intervals.details
        assert details is not None
        strand = np.full(len(found), UNSTRANDED) if settings.ignore_strand else details.strand
        start = window_starts(settings, found)
        label = labels_of(settings, source, len(sources))
        if wanted is not None:
            inside = holds_interval(source.contig, start, strand, wanted, reader)
            label = np.where(inside, POSITIVE, NEGATIVE)
        windows = LabelledWindows(
            contig=source.contig,
            start=start,
            is_minus=strand == MINUS,
            label=label,
            is_negative=np.zeros(len(found), dtype=bool),
        )
        windows = dropped.keep(windows, windows.contig >= 0, _NO_CONTIG)
        windows = dropped.keep(windows, windows.label != "", f"has no {settings.label}")
        parts.append(dropped.keep(windows, reader.fits(windows), _OUTSIDE))
    windows = join(parts)
    windows = drop_repeated(windows, dropped)
    unknown = composition(reader.letters(windows)).unknown
    windows = dropped.keep(windows, unknown <= settings.unknown_bases, _UNKNOWN)
    if not len(windows):
        # The first of equal windows was dropped for another reason.
        most_frequent = next((reason for reason, _ in dropped.most_common() if reason != _REPEATED), "")
        fix = _FIXES.get(most_frequent, "choose another --label")
        raise ConfigError(f"no window is left ({reasons(dropped)}); {fix}")
    return windows


def labels_of(settings: LabelsSettings, source: Source, num_sources: int) -> NDArray[np.str_]:
    """Return the label of each interval, "" where it has none, shape (n,)."""
    details = source.intervals.details
    assert details is not None
    if settings.label == "name":
        return np.array([name if name != "." else "" for name in details.name], dtype=np.str_)
    if settings.label == "score":
        return np.array(["" if np.isnan(score) else f"{score:.10g}" for score in details.score], dtype=np.str_)
    label = source.class_name if settings.label == "file" and num_sources > 1 else POSITIVE
    return np.full(len(source.intervals), label)


def holds_interval(
    contig: NDArray[np.int64],
    start: NDArray[np.int64],
    strand: NDArray[np.bytes_],
    wanted: Intervals,
    reader: SequenceReader,
) -> NDArray[np.bool_]:
    """Return whether an interval of `wanted` lies completely in each window, shape (n,).

    If both have a strand, it must be the same. An interval that reaches beyond its contig is in no window. `contig`,
    `start` and `strand` (n,) are those of the windows. A window that the genome does not have gets any result.
    """
    assert wanted.details is not None
    wanted_contig, wanted_strand = find_contigs(wanted, reader.genome), wanted.details.strand
    # Beyond its contig's end, an interval would be in the next contig of the axis.
    is_usable = (wanted_contig >= 0) & (wanted.end <= reader.axis.lengths[wanted_contig])
    # With a position between contigs, an empty interval at a contig's end is not in the next contig too.
    starts_of = reader.axis.starts + np.arange(len(reader.axis.starts))
    offset = starts_of[wanted_contig]
    places = starts_of[contig] + start
    result = np.zeros(len(start), dtype=bool)
    for one in np.unique(strand).tolist():
        has_strand = (wanted_strand == one) | (wanted_strand == UNSTRANDED) | (one == UNSTRANDED)
        chosen = np.flatnonzero(has_strand & is_usable)
        chosen = chosen[np.argsort(offset[chosen] + wanted.start[chosen], kind="stable")]
        starts, ends = offset[chosen] + wanted.start[chosen], offset[chosen] + wanted.end[chosen]
        # Of the intervals from a window's start on, the one that ends first decides.
        earliest = np.append(np.minimum.accumulate(ends[::-1])[::-1], np.iinfo(np.int64).max)
        rows = np.flatnonzero(strand == one)
        first = np.searchsorted(starts, places[rows], "left")
        result[rows] = earliest[first] <= places[rows] + reader.window
    return result


def warn_of_outside(wanted: Intervals, reader: SequenceReader) -> None:
    """Count the intervals of --overlap that reach beyond their contig in a warning."""
    contig = find_contigs(wanted, reader.genome)
    outside = np.flatnonzero((contig >= 0) & (wanted.end > reader.axis.lengths[contig]))
    if len(outside):
        notice(
            f"warning: --overlap {wanted.display_name}: {len(outside):,} intervals reach beyond their contig and are "
            f"not used (first: line {wanted.line[outside[0]]}); is the file of another assembly?"
        )


def drop_repeated(windows: LabelledWindows, dropped: Dropped) -> LabelledWindows:
    """Keep the first of identical windows. Drop all of them if their labels differ."""
    place_of = np.stack([windows.contig, windows.start, windows.is_minus.astype(np.int64)], axis=1)
    _, first, group = np.unique(place_of, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    has_conflict = np.zeros(len(first), dtype=bool)
    has_conflict[group[windows.label != windows.label[first][group]]] = True
    is_first = np.zeros(len(windows), dtype=bool)
    is_first[first] = True
    is_clear = ~has_conflict[group]
    dropped.kept(is_clear, _TWO_LABELS)
    dropped.kept(is_first | ~is_clear, _REPEATED)
    return windows[is_first & is_clear]


def taken_ranges(settings: LabelsSettings, sources: list[Source], reader: SequenceReader) -> NDArray[np.int64]:
    """Return the ranges (n, 2) that genome negatives keep away from, along all contigs laid end to end.

    They are the windows of all intervals, and the intervals themselves if the settings say so, with --distance on both
    sides, cut at the ends of their contigs.
    """
    distance = settings.window if settings.distance is None else settings.distance
    parts = [np.empty((0, 2), dtype=np.int64)]
    for source in sources:
        found, known = source.intervals, source.contig >= 0
        start = window_starts(settings, found)
        ranges = [(start, start + settings.window)]
        if settings.avoids_intervals:
            ranges.append((found.start, np.maximum(found.end, found.start + 1)))
        for first, last in ranges:
            both = np.stack([first - distance, last + distance], axis=1)[known]
            contig = source.contig[known, None]
            parts.append(reader.axis.starts[contig] + np.clip(both, 0, reader.axis.lengths[contig]))
    return np.concatenate(parts)


def window_starts(settings: LabelsSettings, intervals: Intervals) -> NDArray[np.int64]:
    """Return the start of each interval's window, shape (n,). It may lie outside of the contig."""
    return place(intervals, settings.anchor, settings.window, settings.upstream_bases, settings.ignore_strand)


def reasons(dropped: Dropped) -> str:
    """Return the reasons for dropped windows in one line."""
    return "; ".join(f"{number:,}: {reason}" for reason, number in dropped.items()) or "the files have no interval"
