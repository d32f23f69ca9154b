"""Plan of a build: the division of contigs into segments and shards. The plan is the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.options import BuildOptions
from data_prep.sharding.regions import NO_REGIONS, Regions
from data_prep.sharding.segments import ContigAxis, cut_runs, long_enough
from data_prep.sharding.splits import (
    check_fractions_of_regions,
    matching,
    split_by_blocks,
    split_of_contigs,
    warn_of_empty_splits,
)
from dnabert_rm.data.manifest import SPLITS
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.utils.errors import ConfigError, DataError

REASONS = ("excluded", "excluded_region", "outside_regions", "ambiguous", "too_short")
"""Reasons to leave out a base. A base is counted once, under the first reason that applies."""


@dataclass(frozen=True)
class Segments:
    """Table of segments in storage order. Every array has shape (segments,).

    `contig` is the contig's index, `start` and `end` are base positions in the contig, and `split` is an index into
    `SPLITS`. Reading starts at the byte offset `anchor_byte` of the FASTA file, at or before the segment. `anchor_base`
    is the position of the base at this offset.
    """

    contig: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    split: NDArray[np.int64]
    anchor_byte: NDArray[np.int64]
    anchor_base: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.contig)

    def take(self, rows: NDArray[np.int64] | slice) -> Segments:
        """Return the segments with the indices `rows`, in that order."""
        return Segments(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write. `first_key` is the number of segments stored in earlier shards."""

    name: str
    split: str
    first_key: int
    segments: Segments


@dataclass(frozen=True)
class Plan:
    """Plan of a build: all segments and shards.

    `left_out` holds the number of bases left out of each contig, (contigs,), keyed by reason.
    """

    segments: Segments
    shards: list[ShardPlan]
    left_out: dict[str, NDArray[np.int64]]


def make_plan(contigs: Sequence[Contig], options: BuildOptions, regions: Regions = NO_REGIONS) -> Plan:
    """Return the plan of a build. `regions` are the intervals of its BED files.

    Raises `ConfigError` if `options` do not suit the contigs, and `DataError` if no range is long enough for a segment.
    """
    included = _included(contigs, options)
    axis = ContigAxis.from_lengths([contig.length for contig in contigs])
    gaps = [contig.gaps for contig in contigs]
    whole = axis.ranges_of(included)
    not_excluded, kept = regions.select(whole, contigs, axis)
    runs = axis.runs(gaps, kept, options.unk_bases)
    if options.val_fraction or options.test_fraction:
        whole_runs = axis.runs(gaps, whole, options.unk_bases) if regions else None
        runs, split = split_by_blocks(runs, axis, options, whole_runs)
    else:
        split = split_of_contigs(contigs, options)[axis.contig_of(runs[:, 0])]
    long = long_enough(runs, options.unit_bases, options.min_tokens)
    if not long.any():
        where, fix = ("regions", "widen the intervals") if regions else ("input", "pass --rna")
        raise DataError(
            f"no segment is left: no run of A, C, G, T in the {where} is long enough; lower --min-tokens, or {fix}"
        )
    sizes = runs[long, 1] - runs[long, 0]
    bases = [int(sizes[split[long] == number].sum()) for number in range(len(SPLITS))]
    warn_of_empty_splits(bases, options, " in the regions" if regions else "")
    if regions:
        check_fractions_of_regions(bases, options)
    segments = _make_segments(contigs, axis, runs[long], split[long], options)
    left_out = _left_out(axis, (whole, not_excluded, kept, runs, runs[long]))
    return Plan(segments, _make_shards(segments, options), left_out)


def _included(contigs: Sequence[Contig], options: BuildOptions) -> NDArray[np.bool_]:
    """Return whether --include and --exclude keep each contig, shape (contigs,)."""
    if options.include:
        included = matching(contigs, options.include, "--include")
    else:
        included = np.ones(len(contigs), dtype=bool)
    included &= ~matching(contigs, options.exclude, "--exclude")
    if not included.any():
        raise ConfigError("--include/--exclude: no contig is left; exclude fewer contigs")
    return included


def _make_segments(
    contigs: Sequence[Contig],
    axis: ContigAxis,
    runs: NDArray[np.int64],
    split: NDArray[np.int64],
    options: BuildOptions,
) -> Segments:
    """Cut gap-free ranges into segments. Return the segments in input order, with coordinates in their contigs.

    `runs` (n, 2) holds the start and end of each range, as positions along all contigs laid end to end (`axis`).
    `split` (n,) is the split of each range, as an index into `SPLITS`.
    """
    pieces = cut_runs(runs, options.unit_bases, options.segment_tokens)
    contig = axis.contig_of(pieces[:, 0])
    start, end = (pieces - axis.starts[contig, None]).T
    anchors = np.concatenate([contig.anchors for contig in contigs])
    anchor_positions = anchors[:, 1] + np.repeat(axis.starts, [len(contig.anchors) for contig in contigs])
    anchor_byte, anchor_base = anchors[np.searchsorted(anchor_positions, pieces[:, 0], "right") - 1].T
    piece_split = split[np.searchsorted(runs[:, 0], pieces[:, 0], "right") - 1]
    return Segments(contig, start, end, piece_split, anchor_byte, anchor_base)


def _make_shards(segments: Segments, options: BuildOptions) -> list[ShardPlan]:
    """Divide each split's segments, in order, into nearly equal shards of at most `options.shard_tokens` tokens."""
    shards: list[ShardPlan] = []
    num_keys = 0
    for split, name in enumerate(SPLITS):
        table = segments.take(np.flatnonzero(segments.split == split))
        if not len(table):
            continue
        ends = np.cumsum((table.end - table.start - options.unit_bases + 1) * options.strands)
        target = -(-ends[-1] // -(-ends[-1] // options.shard_tokens))
        first = 0
        while first < len(table):
            before = ends[first - 1] if first else 0
            # The shard ends with the segment that reaches `target`, but never exceeds `shard_tokens`.
            last = min(
                np.searchsorted(ends, before + target, "left") + 1,
                np.searchsorted(ends, before + options.shard_tokens, "right"),
            )
            chosen = table.take(slice(first, last))
            shards.append(ShardPlan(f"shard-{len(shards):06d}.tar", name, num_keys, chosen))
            num_keys += options.strands * len(chosen)
            first = last
    return shards


def _left_out(axis: ContigAxis, steps: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Return each contig's number of bases outside all segments, (contigs,), by reason. Unused reasons are omitted.

    `steps` holds, for each of `REASONS` in order, the ranges (n, 2) that remain after it, as positions along all
    contigs. No base is counted twice.
    """
    remaining = [axis.lengths, *map(axis.bases_of, steps)]
    table = {reason: before - after for reason, before, after in zip(REASONS, remaining, remaining[1:], strict=False)}
    return {reason: bases for reason, bases in table.items() if bases.any()}


def bases_of_splits(segments: Segments) -> dict[str, int]:
    """Return the number of bases in the segments of each split. Bases shared by neighbouring segments count once."""
    tables = {name: segments.take(np.flatnonzero(segments.split == split)) for split, name in enumerate(SPLITS)}
    return {name: _covered_bases(table) for name, table in tables.items() if len(table)}


def _covered_bases(table: Segments) -> int:
    shared = (table.end[:-1] - table.start[1:]) * (table.contig[:-1] == table.contig[1:])
    return int((table.end - table.start).sum() - np.maximum(shared, 0).sum())
