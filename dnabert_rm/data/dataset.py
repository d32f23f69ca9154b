"""Order and readers together: sample indices in, windows of token ids out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.data.mixture import MixtureOrder
from dnabert_rm.data.order import EpochOrder, Order, Windows
from dnabert_rm.data.reader import ShardReader
from dnabert_rm.errors import ConfigError

logger = logging.getLogger(__name__)
NUM_SPECIAL_PER_WINDOW = 2
"""[CLS] and [SEP]."""


@dataclass(frozen=True)
class WindowSettings:
    """How windows are cut from the stored segments; the fields are the `[data]` configuration's."""

    split: str = "train"
    window: int = 512
    overlap: bool = True
    strand: str = "forward"
    num_streams: int = 64
    block_windows: int = 1 << 16
    drop_to_multiple_of: int = 1


class WindowDataset:
    """Windows by sample index. Torch-free; `__getitems__` is what PyTorch's DataLoader calls with a batch."""

    def __init__(
        self, folders: Sequence[str | Path], weights: Sequence[float], settings: WindowSettings, seed: int
    ) -> None:
        """Opens the manifests (no shard yet). `DataError` and `ConfigError` say what does not fit."""
        self.settings = settings
        self.readers = [ShardReader(folder, settings.split) for folder in folders]
        tokenizer = self.readers[0].manifest.tokenizer
        if any(reader.manifest.tokenizer != tokenizer for reader in self.readers):
            raise ConfigError(f"the data sets {[str(f) for f in folders]} have different tokenizers; build them alike")
        if tokenizer.k is None and (not settings.overlap or settings.strand != "forward"):
            raise ConfigError("BPE shards have no non-overlapping and no reverse view; leave data.overlap and data.strand alone")
        self.tokenizer = tokenizer
        self.num_tokens = settings.window - NUM_SPECIAL_PER_WINDOW
        if self.num_tokens < 1:
            raise ConfigError(f"data.window {settings.window} must be at least 3: [CLS], a token, [SEP]; change --window")
        self.stride = 1 if settings.overlap else int(tokenizer.k or 1)
        self.footprint = (self.num_tokens - 1) * self.stride + 1
        orders = [
            EpochOrder(
                reader.shard_segments,
                self.footprint,
                seed,
                strand=settings.strand,
                num_streams=settings.num_streams,
                block_windows=settings.block_windows,
                drop_to_multiple_of=settings.drop_to_multiple_of,
                source=number,
            )
            for number, reader in enumerate(self.readers)
        ]
        self.orders = orders
        self.order: Order = orders[0] if len(orders) == 1 else MixtureOrder(orders, weights or [1.0] * len(orders), seed)

    @property
    def fingerprint(self) -> str:
        """The data's fingerprint: the manifest's, or those of all data sets joined by "+"."""
        return "+".join(reader.manifest.fingerprint for reader in self.readers)

    @property
    def num_windows(self) -> int:
        """Windows of one epoch over all data sets."""
        return sum(order.num_windows for order in self.orders)

    def __getitems__(self, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray]:
        """Windows of sample indices (B,): the indices and ids (B, T) in the stored type."""
        indices = np.asarray(samples, dtype=np.int64)
        found = self.order.locate(indices)
        return indices, np.stack([self._window(found, row) for row in range(len(indices))])

    def _window(self, found: Windows, row: int) -> NDArray:
        return self.readers[int(found.source[row])].window(
            int(found.shard[row]),
            int(found.segment[row]),
            int(found.start[row]),
            self.footprint,
            self.stride,
            bool(found.reverse[row]),
        )

    def places(self, samples: ArrayLike) -> list[dict[str, Any]]:
        """Genome, contig, start, end (bases, forward strand, half-open) and strand ("+" or "-") of each sample."""
        found = self.order.locate(samples)
        return [
            {
                **self.readers[int(found.source[row])].place(
                    int(found.shard[row]), int(found.segment[row]), int(found.start[row]), self.footprint
                ),
                "strand": "-" if found.reverse[row] else "+",
            }
            for row in range(len(found.start))
        ]
