"""Held-out regions, and the stretches of bases in them that are hidden to measure bits per base.

Regions and stretches depend only on the prepared folders, the split and a fixed seed. They don't depend on the model,
its k-mers or its window, so all models are scored on the same bases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.genome.kmer import AMBIGUOUS, MAX_K, decode_codes
from dnabert_rm.utils import random

REGION_BASES = 4096
"""Largest size of a region, in bases."""
MIN_SEGMENT_BASES = 128
"""Smallest segment that has a region, in bases."""
HELD_OUT_SEED = 0
"""Fixed seed, so that runs with different seeds are scored on the same bases."""
_JITTER = 8


@dataclass(frozen=True)
class HeldOutRegion:
    """Part of a held-out segment, with visible bases on both sides as context."""

    genome: str
    contig: str
    start: int
    """Position of `codes[0]` on the contig, 0-based."""
    codes: NDArray[np.uint8]
    """(N,) base codes; `AMBIGUOUS` for letters other than A, C, G, T."""
    first: int
    """Index in `codes` of the region's first base. Earlier bases are context."""
    last: int
    """Index in `codes` after the region's last base. Later bases are context."""
    soft_masked: NDArray[np.bool_] | None = None
    """(N,) whether each base is lower-case in the FASTA, or None if the data don't record it."""
    segment: int = 0
    """Index of the segment among all segments of the split. It seeds the places of the stretches."""
    offset: int = 0
    """Index of `codes[0]` in its segment."""

    def reverse_complement(self) -> HeldOutRegion:
        """Return the region as read on the opposite strand. `start` is unchanged."""
        codes = self.codes[::-1]
        return dataclasses.replace(
            self,
            codes=np.where(codes == AMBIGUOUS, codes, codes ^ 1).astype(np.uint8),
            first=len(codes) - self.last,
            last=len(codes) - self.first,
            soft_masked=None if self.soft_masked is None else self.soft_masked[::-1],
        )


@dataclass(frozen=True)
class HiddenStretches:
    """S stretches of `num_hidden` bases that are hidden from a model, in order of region and position."""

    num_hidden: int
    region: NDArray[np.int64]
    """(S,) index of each stretch's region."""
    start: NDArray[np.int64]
    """(S,) where each stretch starts, as an index in the region's `codes`."""

    def reversed(self, regions: Sequence[HeldOutRegion]) -> HiddenStretches:
        """Return the same stretches, in the same order, as places in the reverse complements of `regions`."""
        lengths = np.array([len(region.codes) for region in regions])
        return HiddenStretches(self.num_hidden, self.region, lengths[self.region] - self.start - self.num_hidden)


def find_stretches(regions: Sequence[HeldOutRegion], num_hidden: int) -> HiddenStretches:
    """Return the hidden stretches of `num_hidden` bases in all regions."""
    starts = [stretch_starts(region, num_hidden) for region in regions]
    region = np.repeat(np.arange(len(regions)), [len(part) for part in starts])
    return HiddenStretches(num_hidden, region, np.concatenate(starts))


def read_regions(readers: Sequence[SplitReader], num_regions: int, context_bases: int) -> list[HeldOutRegion]:
    """Return `num_regions` random regions of the readers' segments, or all regions if there are fewer.

    Each segment is divided into regions of nearly equal size, of at most `REGION_BASES` bases. Every region is equally
    likely. Each result has up to `context_bases` more bases on both sides. The order of the readers does not matter.
    The list is empty if no segment has `MIN_SEGMENT_BASES` bases.

    Raises `DataError` if a shard can't be read. If the readers skip damaged shards, their regions are left out.
    """
    readers = sorted(readers, key=lambda reader: reader.manifest.fingerprint) if len(readers) > 1 else readers
    bases = [_segment_bases(reader) for reader in readers]
    all_bases = np.concatenate([np.zeros(0, dtype=np.int64), *bases])
    counts = np.where(all_bases < MIN_SEGMENT_BASES, 0, -(-all_bases // REGION_BASES))
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    source_ends = np.cumsum([len(part) for part in bases])
    regions = []
    for number in sorted(_choose(total, num_regions)):
        segment = int(np.searchsorted(ends, number, side="right"))
        part = number - int(ends[segment] - counts[segment])
        first, last = (int(all_bases[segment]) * (part + i) // int(counts[segment]) for i in (0, 1))
        source = int(np.searchsorted(source_ends, segment, side="right"))
        within = segment - (int(source_ends[source - 1]) if source else 0)
        region = _read_region(readers[source], within, segment, first, last, context_bases)
        regions += [] if region is None else [region]
    return regions


def _segment_bases(reader: SplitReader) -> NDArray[np.int64]:
    """Return the number of bases in each segment of the split, (S,) int64, in the order of the shards."""
    tokens = np.concatenate(reader.shard_segments)
    k = reader.manifest.tokenizer.k
    assert k is not None, "BPE segments have no fixed number of bases per token"
    return tokens + k - 1


def _choose(total: int, count: int) -> set[int]:
    """Return `count` distinct random numbers from 0 … total - 1, or all of them if `total` is not larger."""
    if total <= count:
        return set(range(total))
    key = random.key(HELD_OUT_SEED, "held-out regions")
    chosen: set[int] = set()
    first = 0
    while len(chosen) < count:
        for number in random.below(random.fold(key, np.arange(first, first + count)), total).tolist():
            if len(chosen) < count:
                chosen.add(number)
        first += count
    return chosen


def _read_region(
    reader: SplitReader, within: int, segment: int, first: int, last: int, context_bases: int
) -> HeldOutRegion | None:
    """Read bases `first` … `last` - 1 of a segment, with context. Return None if the shard is damaged and skipped.

    `within` is the segment's index in the reader's split, and `segment` its index over all readers.
    """
    k = int(reader.manifest.tokenizer.k or 0)
    counts = np.cumsum([len(segments) for segments in reader.shard_segments])
    shard = int(np.searchsorted(counts, within, side="right"))
    index = within - (int(counts[shard - 1]) if shard else 0)
    if not reader.is_usable(shard):
        return None
    num_bases = int(reader.shard_segments[shard][index]) + k - 1
    start, end = max(0, first - context_bases), min(num_bases, last + context_bases)
    if end - start < k:  # a region at the end of a segment without context
        start = max(0, end - k)
    codes = decode_codes(reader.tokens(shard, index, start, end - k + 1), k)
    meta = reader.meta(shard, index)
    return HeldOutRegion(
        genome=meta["genome"],
        contig=meta["contig"],
        start=meta["start"] + start,
        codes=codes,
        first=first - start,
        last=last - start,
        soft_masked=_soft_masked(meta, meta["start"] + start, len(codes)),
        segment=segment,
        offset=start,
    )


def _soft_masked(meta: dict[str, Any], start: int, num_bases: int) -> NDArray[np.bool_] | None:
    """Return which of the contig's bases `start` … `start` + `num_bases` - 1 are soft-masked, if recorded."""
    if "soft_masked" not in meta:
        return None
    masked = np.zeros(num_bases, dtype=bool)
    for low, high in meta["soft_masked"]:
        masked[max(0, low - start) : max(0, high - start)] = True
    return masked


def stretch_starts(region: HeldOutRegion, num_hidden: int) -> NDArray[np.int64]:
    """Return the starts of a region's hidden stretches of `num_hidden` bases, (S,), as ascending indices in `codes`.

    A segment is divided into slots of 24 + 8 * `num_hidden` bases. Each slot has one stretch, at a random place near
    its middle, so at least 17 + 7 * `num_hidden` visible bases separate two stretches. Stretches with an ambiguous base
    are left out, and those with fewer than `MAX_K` bases after them: no token could show these bases to the model.
    """
    period = 24 + 8 * num_hidden
    first, last = region.offset + region.first, region.offset + region.last
    slots = np.arange(first // period, -(-last // period) + 1)
    key = random.fold(random.key(HELD_OUT_SEED, f"hidden stretches of {num_hidden}"), region.segment)
    shifts = random.below(random.fold(key, slots), _JITTER)
    starts = slots * period + (period - num_hidden) // 2 - _JITTER // 2 + shifts
    starts = starts[(starts >= first) & (starts < last)] - region.offset
    starts = starts[starts + num_hidden + MAX_K <= len(region.codes)]
    is_known = region.codes != AMBIGUOUS
    return starts[is_known[starts[:, None] + np.arange(num_hidden)].all(axis=1)]
