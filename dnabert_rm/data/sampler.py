"""Order of the training windows: a pure function of the seed, the manifest and the sample index n.

`(seed, segment lengths, n) → (shard, segment, start, strand)`. The sample index n is the only state, so a run resumes
at n without reading earlier windows. Every rank and worker computes the same order. `EpochSampler` orders one data set,
in three steps per epoch:

1. Cut. A segment is a contiguous part of a contig. A segment of L tokens gives round(L / F) windows of F tokens, by
   stratified jitter. The segment is divided into equal parts (strata), one per window. Window t is centred on a uniform
   random token of stratum t. A window that extends beyond an end of the segment is then moved inside. So all tokens in
   the middle of a segment are seen equally often. Compared with the middle, the outermost tokens are seen half as
   often, and tokens further in, but within F tokens of an end, are seen up to 1.5 times as often. The average over the
   F tokens at an end is the same as in the middle.
2. Shuffle. The shards are shuffled, and so are the segments within each shard. The windows, in that order, are split
   into `num_streams` contiguous ranges. The ranges are assigned to streams at random. The windows of a stream are then
   shuffled within blocks of `block_windows` windows.
3. Interleave. Sample q of the epoch is window q // num_streams of stream q mod num_streams.

So neighbours in a batch come from different streams, while each stream reads few shards at a time. Segments shorter
than F give no window; `num_short_segments` counts them.

`MixtureSampler` combines several data sets by weight. If `data.lengths` is "random", `tokens_of_steps` chooses the
window length of each step, and `crop_offsets` the start of each shortened window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

STRANDS = ("forward", "random", "both")
LENGTHS = ("full", "random")
CYCLE = 4096
"""Samples in one cycle of a mixture."""
NUM_ROUNDS = 6
"""Rounds of the Feistel network of `permute`."""
SHORTEST_TOKENS = 5
"""DNABERT's shortest pretraining sequence, in tokens."""


@dataclass(frozen=True)
class Windows:
    """Positions of N windows in the stored data, as arrays of shape (N,): `reverse` is bool, the others int64.

    `source` is the index of the data set. `shard` is the shard's index in the split, and `segment` the segment's index
    in the shard. `start` is the index of the window's first stored token in the segment. `reverse` is true if the
    reverse strand is read.
    """

    source: NDArray[np.int64]
    shard: NDArray[np.int64]
    segment: NDArray[np.int64]
    start: NDArray[np.int64]
    reverse: NDArray[np.bool_]

    def __getitem__(self, rows: Any) -> Windows:
        """Select windows by a slice, indices or a boolean mask."""
        return Windows(*(getattr(self, item.name)[rows] for item in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Windows]) -> Windows:
        """Return the windows of all parts, one part after the other."""
        return Windows(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Windows)))


class Sampler(Protocol):
    """Window order of one or several data sets."""

    def locate(self, samples: ArrayLike) -> Windows:
        """Return the windows with the given sample indices, in the same order."""


# One data set: EpochSampler


@dataclass(frozen=True, eq=False)
class _Segments:
    """The S segments that are long enough for a window, in the order of the split, as int64 arrays of shape (S,).

    `shard` is the shard's index in the split, and `index` the segment's index in the shard. `length` is in stored
    tokens. `windows` is the number of windows in the segment, and `first_window` the number of windows in all earlier
    segments.
    """

    shard: NDArray[np.int64]
    index: NDArray[np.int64]
    length: NDArray[np.int64]
    windows: NDArray[np.int64]
    first_window: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Shuffled order of the S segments in one epoch.

    `segments` (S,) holds the segment indices in shuffled order. `window_ends` (S,) holds the cumulative number of
    windows in that order. `stream_starts` (num_streams,) holds the index of the first window in each stream.
    """

    segments: NDArray[np.int64]
    window_ends: NDArray[np.int64]
    stream_starts: NDArray[np.int64]


class EpochSampler:
    """Window order of one data set over all epochs."""

    def __init__(
        self,
        shard_segments: Sequence[ArrayLike],
        stored_tokens: int,
        seed: int,
        *,
        strand: str = "forward",
        num_streams: int = 64,
        block_windows: int = 1 << 16,
        drop_to_multiple_of: int = 1,
        source: int = 0,
    ) -> None:
        """Count the windows of all segments. Raise `ConfigError` for an unknown `strand`, or an epoch without samples.

        Args:
            shard_segments: Number of tokens in each segment, (S,) integers per shard.
            stored_tokens: Number of stored tokens that a window of T tokens covers: T, or (T - 1) * k + 1 for
                non-overlapping k-mers.
            seed: Seed of the shuffles.
            strand: "forward", "random" (reverse for half of the windows) or "both" (each window twice per epoch).
            num_streams: Number of streams that the windows are divided into.
            block_windows: Number of windows that are shuffled together within a stream.
            drop_to_multiple_of: Drop windows at the end of each epoch, so that the number of samples per epoch is a
                multiple of this, usually of the global batch size. With 1, a batch may continue into the next epoch.
            source: Index of the data set.
        """
        if strand not in STRANDS:
            raise ConfigError(f"data.strand {strand!r} must be one of {', '.join(STRANDS)}")
        self.stored_tokens = stored_tokens
        self.strand = strand
        self.source = source
        self.num_streams = num_streams
        self.block_windows = block_windows
        self._segments, self.num_short_segments, self.num_short_tokens = _long_segments(shard_segments, stored_tokens)
        self.num_windows = int(self._segments.windows.sum()) * (2 if strand == "both" else 1)
        self.epoch_samples = self.num_windows // drop_to_multiple_of * drop_to_multiple_of
        if self.epoch_samples == 0:
            longest = max((int(np.max(lengths)) for lengths in shard_segments if np.size(lengths)), default=0)
            raise ConfigError(
                f"windows of {stored_tokens} stored tokens do not fill a batch ({self.num_windows} windows; "
                f"the longest segment has {longest} tokens); lower --window or --global-batch, or build more data"
            )
        self._num_shards = len(shard_segments)
        streams = np.arange(num_streams)
        self._stream_sizes = self.num_windows // num_streams + (streams < self.num_windows % num_streams)
        # These names seed the random numbers, so they must never change ("lane" was the name of a stream).
        purposes = ("shard", "segment", "lane", "block", "jitter", "strand")
        self._keys = {purpose: random.key(seed, f"order/{source}/{purpose}") for purpose in purposes}
        self._epochs: dict[int, _Epoch] = {}

    def locate(self, samples: ArrayLike) -> Windows:
        """Return the windows with the given non-negative sample indices, in the same order."""
        samples = np.asarray(samples, dtype=np.int64).reshape(-1)
        epochs, positions = np.divmod(samples, self.epoch_samples)
        numbers = self._window_numbers(epochs, positions)
        reverse = np.zeros(len(samples), dtype=bool)
        if self.strand == "both":
            numbers, odd = np.divmod(numbers, 2)
            reverse = odd == 1
        elif self.strand == "random":
            reverse = random.fold(self._keys["strand"], samples) >> np.uint64(63) == 1
        segments, strata = self._segments_and_strata(epochs, numbers)
        start = self._start(epochs, segments, strata)
        table = self._segments
        return Windows(np.full(len(samples), self.source), table.shard[segments], table.index[segments], start, reverse)

    def _window_numbers(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map positions in an epoch to window numbers. Windows are numbered in the shuffled order of their segments."""
        rows, streams = np.divmod(positions, self.num_streams)
        stream_sizes = self._stream_sizes[streams]
        blocks, offsets = np.divmod(rows, self.block_windows)
        block_sizes = np.minimum(self.block_windows, stream_sizes - blocks * self.block_windows)
        keys = random.fold(random.fold(random.fold(self._keys["block"], epochs), streams), blocks)
        shuffled = blocks * self.block_windows + permute(keys, offsets, block_sizes)
        found, which = np.unique(epochs, return_inverse=True)
        stream_starts = np.array([self._epoch(int(epoch)).stream_starts for epoch in found])
        return (stream_starts[which, streams] if len(found) else streams) + shuffled

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            # Keep two, since successive calls need the same epoch and the next one. A dictionary can be pickled, but an
            # `lru_cache` can't.
            kept = list(self._epochs.items())[-1:]
            self._epochs = {**dict(kept), epoch: self._make_epoch(epoch)}
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> _Epoch:
        shard_rank = np.argsort(random.permutation(random.fold(self._keys["shard"], epoch), self._num_shards))
        tie_break = random.fold(random.fold(self._keys["segment"], epoch), np.arange(len(self._segments.length)))
        order = np.lexsort((tie_break, shard_rank[self._segments.shard]))
        stream_order = random.permutation(random.fold(self._keys["lane"], epoch), self.num_streams)
        stream_starts = np.empty(self.num_streams, dtype=np.int64)
        stream_starts[stream_order] = np.cumsum(self._stream_sizes[stream_order]) - self._stream_sizes[stream_order]
        return _Epoch(order, np.cumsum(self._segments.windows[order]), stream_starts)

    def _segments_and_strata(
        self, epochs: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each window's segment, and the index of the window's stratum.

        A segment is divided into as many equal strata as it has windows.
        """
        segments, strata = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in np.unique(epochs):
            table, rows = self._epoch(int(epoch)), epochs == epoch
            positions = np.searchsorted(table.window_ends, numbers[rows], side="right")
            segments[rows] = table.segments[positions]
            strata[rows] = numbers[rows] - (table.window_ends[positions] - self._segments.windows[segments[rows]])
        return segments, strata

    def _start(
        self, epochs: NDArray[np.int64], segments: NDArray[np.int64], strata: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the index of each window's first stored token in its segment.

        A segment is divided into equal strata, one for each of its windows. A window is centred on a uniform random
        token of its stratum. If the window extends beyond an end of the segment, it is moved inside.

        A stratum is a whole number of tokens, and longer than half a window. So at most one window is moved at each end
        of a segment, and no two windows of an epoch are equal.
        """
        length, windows = self._segments.length[segments], self._segments.windows[segments]
        bits = random.fold(random.fold(self._keys["jitter"], epochs), self._segments.first_window[segments] + strata)
        low, high = strata * length // windows, (strata + 1) * length // windows
        centre = low + random.below(bits, high - low)
        return np.clip(centre - (self.stored_tokens - 1) // 2, 0, length - self.stored_tokens)


def _long_segments(shard_segments: Sequence[ArrayLike], stored_tokens: int) -> tuple[_Segments, int, int]:
    """Return the segments of at least `stored_tokens` tokens.

    Also return the number of shorter segments and the number of tokens in them.
    """
    shards = [np.asarray(lengths, dtype=np.int64) for lengths in shard_segments]
    counts = np.array([len(lengths) for lengths in shards], dtype=np.int64)
    shard = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    length = np.concatenate([np.zeros(0, dtype=np.int64), *shards])
    kept = length >= stored_tokens
    windows = (length[kept] + stored_tokens // 2) // stored_tokens
    segments = _Segments(
        shard=shard[kept],
        index=index[kept],
        length=length[kept],
        windows=windows,
        first_window=np.cumsum(windows) - windows,
    )
    return segments, int((~kept).sum()), int(length[~kept].sum())


# Several data sets: MixtureSampler

_CHECKED_CYCLES = 100_000
"""Cycles in which small shares are checked: 400 million samples."""


class MixtureSampler:
    """Sampler that draws from several data sets in proportion to their weights.

    The mixed sequence consists of cycles of `CYCLE` samples. For every c, the first c cycles contain the first samples
    of each data set: its share of c * `CYCLE`, rounded to a whole number. Within a cycle, all samples are shuffled.
    """

    def __init__(self, samplers: Sequence[EpochSampler], weights: Sequence[float], seed: int) -> None:
        """Raise `ConfigError` unless there is one positive weight for each data set, and none is too small."""
        if len(weights) != len(samplers) or not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(
                f"data.weights {list(weights)} must hold one positive number for each of {len(samplers)} data sets"
            )
        self._samplers = list(samplers)
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._cumulative[-1] = 1.0
        self._key = random.key(seed, "mixture")
        if min(weights) * CYCLE < sum(weights) and (self._quotas(np.arange(_CHECKED_CYCLES)) < 0).any():
            raise ConfigError(
                f"data.weights: {min(weights):g} is less than 1 in {CYCLE:,} of their sum {sum(weights):g}; raise this "
                "weight, leave that data set out, or build all genomes into one folder"
            )

    def locate(self, samples: ArrayLike) -> Windows:
        """Return the windows with the given sample indices, in the same order."""
        sets, indices = self.assign(samples)
        parts = [(np.flatnonzero(sets == number), sampler) for number, sampler in enumerate(self._samplers)]
        found = [(rows, sampler.locate(indices[rows])) for rows, sampler in parts if len(rows)]
        original_order = np.argsort(np.concatenate([rows for rows, _ in found]))
        return Windows.concatenate([windows for _, windows in found])[original_order]

    def assign(self, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Map N sample indices to data sets and to sample indices within those data sets, both (N,) int64."""
        cycles, positions = np.divmod(np.asarray(samples, dtype=np.int64).reshape(-1), CYCLE)
        before, quotas = self._quota_ends(cycles), self._quotas(cycles)
        assert (quotas >= 0).all()
        quota_ends = np.cumsum(quotas, axis=1)
        slots = permute(random.fold(self._key, cycles), positions, np.full(len(cycles), CYCLE))
        sets = (slots[:, None] >= quota_ends).sum(axis=1)
        rows = np.arange(len(cycles))
        first_slot = np.where(sets > 0, quota_ends[rows, sets - 1], 0)
        return sets, np.diff(before)[rows, sets] + slots - first_slot

    def _quotas(self, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of samples of each of the D data sets in each of N cycles, (N, D) int64."""
        return np.diff(self._quota_ends(cycles + 1)) - np.diff(self._quota_ends(cycles))

    def _quota_ends(self, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of N cycle numbers, return cumulative sample counts of the D data sets, (N, D + 1) int64.

        Column d is the number of samples from data sets 0 … d - 1 in all earlier cycles, rounded to whole samples.
        """
        return np.rint(cycles[:, None] * (self._cumulative * CYCLE)).astype(np.int64)


# The shuffle that both samplers use


def permute(keys: NDArray[np.uint64], values: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the image of each value under a random permutation of 0 … size - 1.

    The value's key selects the permutation. The method is an alternating Feistel network on a rectangle of a x b cells.
    If the result is `size` or more, the network is applied to the result again. This is cycle walking (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002). Such results are rare, because the rectangle has at most
    size + a - 1 cells.

    Args:
        keys: (N,) uint64. Values with the same key and size share one permutation.
        values: (N,) int64, each from 0 to size - 1.
        sizes: (N,) int64.

    Returns: (N,) int64.
    """
    height = np.ceil(np.sqrt(sizes)).astype(np.int64)
    width = -(-sizes // height)
    out = np.array(values, dtype=np.int64)
    todo = np.arange(len(out))
    while len(todo):
        out[todo] = _feistel(keys[todo], out[todo], height[todo], width[todo])
        todo = todo[out[todo] >= sizes[todo]]
    return out


def _feistel(
    keys: NDArray[np.uint64], values: NDArray[np.int64], height: NDArray[np.int64], width: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Apply a bijection of 0 … height * width - 1, the cell numbers of a table.

    Even rounds shift the row by a hash of the column. Odd rounds shift the column by a hash of the row.
    """
    row, column = np.divmod(values, width)
    for number in range(NUM_ROUNDS):
        round_keys = random.fold(keys, number)
        if number % 2 == 0:
            row = (row + random.below(random.fold(round_keys, column), height)) % height
        else:
            column = (column + random.below(random.fold(round_keys, row), width)) % width
    return row * width + column


# Window lengths of each step


def tokens_of_steps(seed: int, steps: ArrayLike, full_tokens: int) -> NDArray[np.int64]:
    """Return the number of tokens per window in each step, int64 in the shape of `steps`.

    This function is used if `data.lengths` is "random". All windows of a step have the same length, so padding is never
    needed. With probability 1/2, the length is `full_tokens`. With probability 1/2, the length is drawn uniformly from
    5 … `full_tokens`, as in DNABERT.
    """
    bits = random.fold(random.key(seed, "length"), steps)
    num_lengths = max(1, full_tokens - SHORTEST_TOKENS + 1)
    shorter = np.minimum(SHORTEST_TOKENS, full_tokens) + random.below(random.fold(bits, 0), num_lengths)
    return np.where(bits >> np.uint64(63) == 1, shorter, full_tokens)


def mean_tokens(full_tokens: int) -> float:
    """Return the expected value of `tokens_of_steps`."""
    return (full_tokens + (min(SHORTEST_TOKENS, full_tokens) + full_tokens) / 2) / 2


def crop_offsets(seed: int, samples: ArrayLike, full_tokens: int, num_tokens: int) -> NDArray[np.int64]:
    """For each shortened window, return a random start within the full window, int64 in the shape of `samples`."""
    bits = random.fold(random.key(seed, "crop"), samples)
    return random.below(bits, full_tokens - num_tokens + 1)
