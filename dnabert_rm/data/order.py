"""Order as a pure function: (seed, segment lengths, n) → (shard, segment, start, strand).

No state but n, so a resume is a seek and every rank, worker and run agrees. For one epoch:

1. Each segment of L tokens gives round(L / F) windows of F tokens, cut by stratified jitter: window t
   starts at a uniform token of the t-th of equal strata of the segment, moved back by half a window and
   clipped to the segment, so that the ends of a segment are seen about as often as its middle.
2. Shards are shuffled, and segments within their shard; the windows, in that order, are cut into
   `num_streams` contiguous lanes, and every lane is shuffled within blocks of `block_windows`.
3. Sample q of the epoch is window q // num_streams of lane q mod num_streams.

So neighbours in a batch come from different lanes, while a lane has few shards open at a time.
Segments shorter than F give no window; `num_short_segments` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

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
        self._keys = {what: draws.key(seed, f"order/{source}/{what}") for what in ("shard", "segment", "block", "jitter")}
        self._strand_key = draws.key(seed, f"order/{source}/strand")
        self._epoch_table = lru_cache(maxsize=2)(self._make_epoch_table)

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
            reverse = draws.fold(self._strand_key, samples) >> np.uint64(63) == 1
        segments, strata = self._segment_and_stratum(epochs, numbers)
        start = self._start(epochs, segments, strata)
        table = self._segments
        return Windows(
            np.full(len(samples), self.source), table.shard[segments], table.index[segments], start, reverse
        )

    def _window_number(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position in the epoch → number of the window before the shuffle in lanes and blocks."""
        rows, lanes = np.divmod(positions, self.num_streams)
        base, extra = divmod(self.num_windows, self.num_streams)
        lane_sizes = base + (lanes < extra)
        blocks, offsets = np.divmod(rows, self.block_windows)
        block_sizes = np.minimum(self.block_windows, lane_sizes - blocks * self.block_windows)
        keys = draws.fold(draws.fold(draws.fold(self._keys["block"], epochs), lanes), blocks)
        shuffled = blocks * self.block_windows + permuted(keys, offsets, block_sizes)
        return lanes * base + np.minimum(lanes, extra) + shuffled

    def _make_epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of segments, and the number of windows up to the end of each; both (S,)."""
        shard_rank = np.argsort(draws.permutation(draws.fold(self._keys["shard"], epoch), self._num_shards))
        tie_break = draws.fold(draws.fold(self._keys["segment"], epoch), np.arange(len(self._segments.length)))
        order = np.lexsort((tie_break, shard_rank[self._segments.shard]))
        return order, np.cumsum(self._segments.windows[order])

    def _segment_and_stratum(
        self, epochs: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        segments, strata = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in np.unique(epochs):
            order, ends = self._epoch_table(int(epoch))
            here = epochs == epoch
            place = np.searchsorted(ends, numbers[here], side="right")
            segments[here] = order[place]
            strata[here] = numbers[here] - (ends[place] - self._segments.windows[order[place]])
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
    segments = _Segments(
        shard[kept], index[kept].astype(np.int64), length[kept], windows, np.cumsum(windows) - windows
    )
    return segments, int((~kept).sum()), int(length[~kept].sum())
