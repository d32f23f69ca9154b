"""Order as a pure function: (seed, segment lengths, n) → (shard, segment, start, strand).

No state but n, so a resume is a seek and every rank, worker and run agrees. For one epoch:

1. Each segment of L tokens gives round(L / F) windows of F tokens, cut by stratified jitter: window t
   starts at a uniform token of the t-th of equal strata of the segment, moved back by half a window and
   clipped to the segment. So all tokens of the middle are seen equally often, and those within a window of
   an end as often on average: the very last half as often, those a window further in up to 1.5 times.
2. Shards are shuffled, and segments within their shard; the windows, in that order, are cut into
   `num_streams` contiguous stretches. The stretches are dealt to as many lanes by lot, and every lane is
   shuffled within blocks of `block_windows`.
3. Sample q of the epoch is window q // num_streams of lane q mod num_streams.

So neighbours in a batch come from different lanes, while a lane has few shards open at a time.
Segments shorter than F give no window; `num_short_segments` counts them.
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
REMAINDERS = ("wrap", "drop")


@dataclass(frozen=True)
class Windows:
    """Where N windows lie, one element of each array a window, int64 and bool, shape (N,).

    `shard` and `segment` number the shards of the split and the segments of the shard, `start` is in
    stored (overlapping) tokens, `reverse` says that the other strand is read; `source` numbers the data set.
    """

    source: NDArray[np.int64]
    shard: NDArray[np.int64]
    segment: NDArray[np.int64]
    start: NDArray[np.int64]
    reverse: NDArray[np.bool_]

    def __getitem__(self, rows: Any) -> Windows:
        """Some of the windows: a slice, indices or a boolean mask."""
        return Windows(*(getattr(self, item.name)[rows] for item in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Windows]) -> Windows:
        """The windows of all parts, one after the other."""
        return Windows(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Windows)))


class Sampler(Protocol):
    """What the reader and the loader need of an order."""

    def locate(self, samples: ArrayLike) -> Windows:
        """Windows of the sample indices, in their order."""


@dataclass(frozen=True, eq=False)
class _Segments:
    """The segments that are long enough, numbered over the split; arrays of shape (S,), int64."""

    shard: NDArray[np.int64]
    index: NDArray[np.int64]
    length: NDArray[np.int64]
    windows: NDArray[np.int64]
    first_window: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Epoch:
    """One epoch: the order of `segments`, the windows up to the end of each (S,), where each lane starts (lanes,)."""

    segments: NDArray[np.int64]
    window_ends: NDArray[np.int64]
    lane_starts: NDArray[np.int64]


class EpochSampler:
    """The order of one data set's windows over all epochs."""

    def __init__(
        self,
        shard_segments: Sequence[Sequence[int]],
        footprint: int,
        seed: int,
        *,
        strand: str = "forward",
        num_streams: int = 64,
        block_windows: int = 1 << 16,
        drop_to_multiple_of: int = 1,
        source: int = 0,
    ) -> None:
        """Args: `shard_segments` tokens of each segment of each shard; `footprint` stored tokens that a window
        covers (its length, or (length - 1) * k + 1 for non-overlapping tokens); `strand` "forward", "random"
        (half of the windows) or "both" (each window twice an epoch); `drop_to_multiple_of` the rule for the
        remainder of an epoch: 1 keeps every window and lets a batch run on into the next epoch, a global batch
        size drops what does not fill a batch. `ConfigError` where no window fits.
        """
        if strand not in STRANDS:
            raise ConfigError(f"data.strand {strand!r} must be one of {', '.join(STRANDS)}")
        self.footprint, self.strand, self.source = footprint, strand, source
        self.num_streams, self.block_windows = num_streams, block_windows
        self._segments, self.num_short_segments, self.num_short_tokens = _long_segments(shard_segments, footprint)
        self.num_windows = int(self._segments.windows.sum()) * (2 if strand == "both" else 1)
        self.epoch_samples = self.num_windows // drop_to_multiple_of * drop_to_multiple_of
        if self.epoch_samples == 0:
            longest = max((max(lengths) for lengths in shard_segments if len(lengths)), default=0)
            raise ConfigError(
                f"no full batch of windows of {footprint} stored tokens can be cut ({self.num_windows} windows; "
                f"the longest segment has {longest} tokens); lower --window or --global-batch, or build more data"
            )
        self._num_shards = len(shard_segments)
        lanes = np.arange(num_streams)
        self._lane_sizes = self.num_windows // num_streams + (lanes < self.num_windows % num_streams)
        purposes = ("shard", "segment", "lane", "block", "jitter", "strand")
        self._keys = {what: random.key(seed, f"order/{source}/{what}") for what in purposes}
        self._epoch_tables: dict[int, _Epoch] = {}

    def locate(self, samples: ArrayLike) -> Windows:
        """Windows of the sample indices n >= 0, shape (N,) in, arrays of shape (N,) out."""
        samples = np.asarray(samples, dtype=np.int64).reshape(-1)
        epochs, positions = np.divmod(samples, self.epoch_samples)
        numbers = self._window_number(epochs, positions)
        reverse = np.zeros(len(samples), dtype=bool)
        if self.strand == "both":
            numbers, odd = np.divmod(numbers, 2)
            reverse = odd == 1
        elif self.strand == "random":
            reverse = random.fold(self._keys["strand"], samples) >> np.uint64(63) == 1
        segments, strata = self._segment_and_stratum(epochs, numbers)
        start = self._start(epochs, segments, strata)
        table = self._segments
        return Windows(np.full(len(samples), self.source), table.shard[segments], table.index[segments], start, reverse)

    def _window_number(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position in the epoch → number of the window before the shuffle in lanes and blocks."""
        rows, lanes = np.divmod(positions, self.num_streams)
        lane_sizes = self._lane_sizes[lanes]
        blocks, offsets = np.divmod(rows, self.block_windows)
        block_sizes = np.minimum(self.block_windows, lane_sizes - blocks * self.block_windows)
        keys = random.fold(random.fold(random.fold(self._keys["block"], epochs), lanes), blocks)
        shuffled = blocks * self.block_windows + permuted(keys, offsets, block_sizes)
        found, which = np.unique(epochs, return_inverse=True)
        lane_starts = np.array([self._epoch(int(epoch)).lane_starts for epoch in found])
        return (lane_starts[which, lanes] if len(found) else lanes) + shuffled

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epoch_tables:
            # A batch lies in at most two epochs, so two tables are enough; a plain dictionary can be pickled.
            kept = list(self._epoch_tables.items())[-1:]
            self._epoch_tables = {**dict(kept), epoch: self._make_epoch(epoch)}
        return self._epoch_tables[epoch]

    def _make_epoch(self, epoch: int) -> _Epoch:
        shard_rank = np.argsort(random.permutation(random.fold(self._keys["shard"], epoch), self._num_shards))
        tie_break = random.fold(random.fold(self._keys["segment"], epoch), np.arange(len(self._segments.length)))
        order = np.lexsort((tie_break, shard_rank[self._segments.shard]))
        stretches = random.permutation(random.fold(self._keys["lane"], epoch), self.num_streams)
        lane_starts = np.empty(self.num_streams, dtype=np.int64)
        lane_starts[stretches] = np.cumsum(self._lane_sizes[stretches]) - self._lane_sizes[stretches]
        return _Epoch(order, np.cumsum(self._segments.windows[order]), lane_starts)

    def _segment_and_stratum(
        self, epochs: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        segments, strata = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in np.unique(epochs):
            table, here = self._epoch(int(epoch)), epochs == epoch
            place = np.searchsorted(table.window_ends, numbers[here], side="right")
            segments[here] = table.segments[place]
            strata[here] = numbers[here] - (table.window_ends[place] - self._segments.windows[segments[here]])
        return segments, strata

    def _start(
        self, epochs: NDArray[np.int64], segments: NDArray[np.int64], strata: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """First stored token of each window: a uniform token of its stratum, moved and clipped to the segment.

        Strata hold whole tokens and are longer than the move, so no two windows of an epoch are equal.
        """
        length, windows = self._segments.length[segments], self._segments.windows[segments]
        bits = random.fold(random.fold(self._keys["jitter"], epochs), self._segments.first_window[segments] + strata)
        low, high = strata * length // windows, (strata + 1) * length // windows
        point = low + random.below(bits, high - low) - (self.footprint - 1) // 2
        return np.clip(point, 0, length - self.footprint)


def _long_segments(shard_segments: Sequence[Sequence[int]], footprint: int) -> tuple[_Segments, int, int]:
    """The segments of at least `footprint` tokens, and number and tokens of the shorter ones."""
    counts = [len(lengths) for lengths in shard_segments]
    shard = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0)
    length = np.array([tokens for lengths in shard_segments for tokens in lengths], dtype=np.int64)
    kept = length >= footprint
    windows = (length[kept] + footprint // 2) // footprint
    segments = _Segments(shard[kept], index[kept].astype(np.int64), length[kept], windows, np.cumsum(windows) - windows)
    return segments, int((~kept).sum()), int(length[~kept].sum())


NUM_ROUNDS = 6


def permuted(keys: NDArray[np.uint64], values: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Image of each value under a random permutation of 0 … size - 1 that its key chooses.

    Args: `keys` uint64, `values` and `sizes` int64 with 0 <= value < size, all of shape (N,).
    Returns (N,) int64. Elements of one key and size see one permutation.

    An alternating Feistel network on a rectangle of a x b >= size cells, with cycle walking
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): since a * b < size + a,
    a second walk is rare.
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
    """A bijection of 0 … height * width - 1: rounds that shift one coordinate by a hash of the other."""
    row, column = np.divmod(values, width)
    for turn in range(NUM_ROUNDS):
        round_keys = random.fold(keys, turn)
        if turn % 2 == 0:
            row = (row + random.below(random.fold(round_keys, column), height)) % height
        else:
            column = (column + random.below(random.fold(round_keys, row), width)) % width
    return row * width + column


LENGTHS = ("full", "random")
SHORTEST_TOKENS = 5
"""DNABERT's shortest pretraining sequence, in tokens."""


def tokens_of_steps(seed: int, steps: ArrayLike, full_tokens: int) -> NDArray[np.int64]:
    """Tokens of the windows of each step under `data.lengths` "random", shape of `steps`, int64.

    Half of the steps have `full_tokens`, the others a length uniform over 5 … `full_tokens` (DNABERT's rule). All
    windows of a step have one length, so that no padding is ever needed.
    """
    bits = random.fold(random.key(seed, "length"), steps)
    spread = max(1, full_tokens - SHORTEST_TOKENS + 1)
    drawn = np.minimum(SHORTEST_TOKENS, full_tokens) + random.below(random.fold(bits, 0), spread)
    return np.where(bits >> np.uint64(63) == 1, drawn, full_tokens)


def crop_offsets(seed: int, samples: ArrayLike, full_tokens: int, num_tokens: int) -> NDArray[np.int64]:
    """First token of each shortened window within the full one, uniform; shape of `samples`, int64."""
    bits = random.fold(random.key(seed, "crop"), samples)
    return random.below(bits, full_tokens - num_tokens + 1)


CYCLE = 4096


class MixtureSampler:
    """Deals samples to data sets by weight, each set in its own order.

    Samples come in cycles of 4,096. After c whole cycles every set has had its exact share of
    c * 4096 samples, to less than one; within a cycle the sets are shuffled.
    """

    def __init__(self, samplers: Sequence[EpochSampler], weights: Sequence[float], seed: int) -> None:
        """`ConfigError` unless there is one positive weight a data set."""
        if len(weights) != len(samplers) or not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(
                f"data.weights {list(weights)} must hold one positive number for each of {len(samplers)} data sets"
            )
        self._samplers = list(samplers)
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._cumulative[-1] = 1.0
        self._key = random.key(seed, "mixture")

    def _quota_ends(self, cycles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of sets 0 … d - 1 together after so many cycles, (N, D + 1), rounded."""
        return np.rint(cycles[:, None] * (self._cumulative * CYCLE)).astype(np.int64)

    def assign(self, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Data set and sample index within it of each sample index, both (N,)."""
        cycles, positions = np.divmod(np.asarray(samples, dtype=np.int64).reshape(-1), CYCLE)
        before, after = self._quota_ends(cycles), self._quota_ends(cycles + 1)
        quota_ends = np.cumsum(np.diff(after) - np.diff(before), axis=1)
        slots = permuted(random.fold(self._key, cycles), positions, np.full(len(cycles), CYCLE))
        sets = (slots[:, None] >= quota_ends).sum(axis=1)
        rows = np.arange(len(cycles))
        first_slot = np.where(sets > 0, quota_ends[rows, sets - 1], 0)
        return sets, np.diff(before)[rows, sets] + slots - first_slot

    def locate(self, samples: ArrayLike) -> Windows:
        """Windows of the sample indices, in their order; `source` is the data set's number."""
        sets, indices = self.assign(samples)
        parts = [(np.flatnonzero(sets == number), sampler) for number, sampler in enumerate(self._samplers)]
        found = [(rows, order.locate(indices[rows])) for rows, order in parts if len(rows)]
        back = np.argsort(np.concatenate([rows for rows, _ in found]))
        return Windows.concatenate([windows for _, windows in found])[back]
