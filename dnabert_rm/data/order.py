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

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm import draws
from dnabert_rm.data.shuffle import permuted
from dnabert_rm.errors import ConfigError

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


class Order(Protocol):
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


class EpochOrder:
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
        self._keys = {what: draws.key(seed, f"order/{source}/{what}") for what in purposes}
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
            reverse = draws.fold(self._keys["strand"], samples) >> np.uint64(63) == 1
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
        keys = draws.fold(draws.fold(draws.fold(self._keys["block"], epochs), lanes), blocks)
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
        shard_rank = np.argsort(draws.permutation(draws.fold(self._keys["shard"], epoch), self._num_shards))
        tie_break = draws.fold(draws.fold(self._keys["segment"], epoch), np.arange(len(self._segments.length)))
        order = np.lexsort((tie_break, shard_rank[self._segments.shard]))
        stretches = draws.permutation(draws.fold(self._keys["lane"], epoch), self.num_streams)
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
        bits = draws.fold(draws.fold(self._keys["jitter"], epochs), self._segments.first_window[segments] + strata)
        low, high = strata * length // windows, (strata + 1) * length // windows
        point = low + draws.below(bits, high - low) - (self.footprint - 1) // 2
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
