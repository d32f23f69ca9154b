"""The shard plan: from what a scan found to independent units of work, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.build.options import BuildOptions
from data_prep.build.segments import Line, cut_runs, long_enough
from data_prep.build.splits import matching, split_by_blocks, split_of_contigs
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.data.manifest import SPLITS


@dataclass(frozen=True)
class Segments:
    """A table of segments in storage order; every array has shape (segments,).

    `contig` is the contig's number, `start` and `end` bases, `split` an index of `SPLITS`, and
    `anchor_byte`, `anchor_base` where reading may begin.
    """

    contig: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    split: NDArray[np.int64]
    anchor_byte: NDArray[np.int64]
    anchor_base: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.contig)

    def take(self, which: NDArray[np.int64] | slice) -> Segments:
        """The segments `which`, in that order."""
        return Segments(**{name: column[which] for name, column in vars(self).items()})


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its name, split, segments, and the number of its first key."""

    name: str
    split: str
    first_key: int
    segments: Segments


@dataclass(frozen=True)
class Plan:
    """All segments, the shards that share them out, and for every contig the bases left out by reason."""

    segments: Segments
    shards: list[ShardPlan]
    left_out: list[dict[str, int]]


def make_plan(contigs: Sequence[Contig], options: BuildOptions) -> Plan:
    """Runs, splits, segments and shards; `ConfigError` or `DataError` where nothing would be stored."""
    taken = _taken(contigs, options)
    line = Line.of([contig.length for contig in contigs])
    runs = line.runs([contig.gaps for contig in contigs], taken, options.unk_bases)
    if options.val_fraction or options.test_fraction:
        runs, split = split_by_blocks(runs, line, options)
    else:
        split = split_of_contigs(contigs, options)[line.contig_of(runs[:, 0])]
    long = long_enough(runs, options.unit_bases, options.min_tokens)
    if not long.any():
        raise DataError("no segment is left of the input: no run of A, C, G, T is long enough; see --min-tokens, --rna")
    segments = _segment_table(contigs, line, runs[long], split[long], options)
    return Plan(segments, _cut_shards(segments, options), _left_out(line, runs, long, taken))


def bases_of_splits(segments: Segments) -> dict[str, int]:
    """Bases that the segments of each split cover, those that neighbours share counted once."""
    tables = {name: segments.take(np.flatnonzero(segments.split == split)) for split, name in enumerate(SPLITS)}
    return {name: _covered(table) for name, table in tables.items() if len(table)}


def _covered(table: Segments) -> int:
    shared = (table.end[:-1] - table.start[1:]) * (table.contig[:-1] == table.contig[1:])
    return int((table.end - table.start).sum() - np.maximum(shared, 0).sum())


def _taken(contigs: Sequence[Contig], options: BuildOptions) -> NDArray[np.bool_]:
    """Which contigs --include and --exclude leave, shape (contigs,)."""
    taken = matching(contigs, options.include, "--include") if options.include else np.ones(len(contigs), dtype=bool)
    taken &= ~matching(contigs, options.exclude, "--exclude")
    if not taken.any():
        raise ConfigError("--include/--exclude: no contig is left; name fewer of them")
    return taken


def _left_out(
    line: Line, runs: NDArray[np.int64], long: NDArray[np.bool_], taken: NDArray[np.bool_]
) -> list[dict[str, int]]:
    """Bases of every contig in no segment, by reason; reasons without a base are not listed."""
    sizes, contig = runs[:, 1] - runs[:, 0], line.contig_of(runs[:, 0])
    in_runs, short = np.zeros_like(line.lengths), np.zeros_like(line.lengths)
    np.add.at(in_runs, contig, sizes)
    np.add.at(short, contig[~long], sizes[~long])
    table = {
        "ambiguous": np.where(taken, line.lengths - in_runs, 0),
        "excluded": np.where(taken, 0, line.lengths),
        "too_short": short,
    }
    rows = zip(*(counts.tolist() for counts in table.values()), strict=True)
    return [{reason: bases for reason, bases in zip(table, row, strict=True) if bases} for row in rows]


def _segment_table(
    contigs: Sequence[Contig], line: Line, runs: NDArray[np.int64], split: NDArray[np.int64], options: BuildOptions
) -> Segments:
    """Cut runs on the line into segments, in the order of the input, in their contigs' coordinates."""
    pieces = cut_runs(runs, options.unit_bases, options.segment_tokens)
    contig = line.contig_of(pieces[:, 0])
    start, end = (pieces - line.starts[contig, None]).T
    anchors = np.concatenate([contig.anchors for contig in contigs])
    bases = anchors[:, 1] + np.repeat(line.starts, [len(contig.anchors) for contig in contigs])
    anchor_byte, anchor_base = anchors[np.searchsorted(bases, pieces[:, 0], "right") - 1].T
    piece_split = split[np.searchsorted(runs[:, 0], pieces[:, 0], "right") - 1]
    return Segments(contig, start, end, piece_split, anchor_byte, anchor_base)


def _cut_shards(segments: Segments, options: BuildOptions) -> list[ShardPlan]:
    """Deal the segments of each split, in order, to shards of nearly equal size, at most `shard_tokens`."""
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
            # Up to the segment that reaches the target, but never above the limit.
            last = min(
                np.searchsorted(ends, before + target, "left") + 1,
                np.searchsorted(ends, before + options.shard_tokens, "right"),
            )
            chosen = table.take(slice(first, last))
            shards.append(ShardPlan(f"shard-{len(shards):06d}.tar", name, num_keys, chosen))
            num_keys += options.strands * len(chosen)
            first = last
    return shards
