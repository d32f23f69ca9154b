"""Order and readers together: sample indices in, windows of token ids out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.sampler import (
    LENGTHS,
    EpochSampler,
    MixtureSampler,
    Sampler,
    Windows,
    crop_offsets,
    tokens_of_steps,
)
from dnabert_rm.data.split_reader import ShardReader
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.genome.kmer import id_dtype, reverse_complement_ids
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError, DataError

NUM_SPECIAL_PER_WINDOW = 2
"""[CLS] and [SEP]."""
_NUM_STAND_INS = 100


@dataclass(frozen=True)
class WindowSettings:
    """How windows are cut from the stored segments; the fields are the `[data]` configuration's."""

    split: str = "train"
    window: int = 512
    overlap: bool = True
    strand: str = "forward"
    lengths: str = "full"
    num_streams: int = 64
    block_windows: int = 1 << 16
    drop_to_multiple_of: int = 1


@dataclass(frozen=True)
class WindowBatch:
    """Windows without special tokens: `samples` (B,) int64, `ids` (B, T) in the stored type.

    `num_replaced` of them stand in for windows of bad shards.
    """

    samples: NDArray[np.int64]
    ids: NDArray
    num_replaced: int = 0


class WindowDataset:
    """Windows by sample index and step; a function of both, and of which shards are bad. Torch-free."""

    def __init__(
        self,
        folders: Sequence[str | Path],
        weights: Sequence[float],
        settings: WindowSettings,
        seed: int,
        storage: StorageSettings | None = None,
    ) -> None:
        """Opens the manifests (no shard yet). `DataError` and `ConfigError` say what does not fit."""
        self.settings, self.seed = settings, seed
        self.readers = [ShardReader(folder, settings.split, storage) for folder in folders]
        self.tokenizer = self.readers[0].manifest.tokenizer
        self._check(folders)
        self.num_tokens = settings.window - NUM_SPECIAL_PER_WINDOW
        self.stride = 1 if settings.overlap else int(self.tokenizer.k or 1)
        self.samplers = [
            EpochSampler(
                reader.shard_segments,
                self._footprint(self.num_tokens),
                seed,
                strand=settings.strand,
                num_streams=settings.num_streams,
                block_windows=settings.block_windows,
                drop_to_multiple_of=settings.drop_to_multiple_of,
                source=number,
            )
            for number, reader in enumerate(self.readers)
        ]
        weights = weights or [1.0] * len(self.samplers)
        self.order: Sampler = (
            self.samplers[0] if len(self.samplers) == 1 else MixtureSampler(self.samplers, weights, seed)
        )
        self._stand_in_key = random.key(seed, "stand-in")

    def _check(self, folders: Sequence[str | Path]) -> None:
        """`ConfigError` for settings that don't fit the data or each other."""
        settings, names = self.settings, [str(folder) for folder in folders]
        if any(reader.manifest.tokenizer != self.tokenizer for reader in self.readers):
            raise ConfigError(f"the data sets {names} have different tokenizers; build them alike")
        if self.tokenizer.k is None and (not settings.overlap or settings.strand != "forward"):
            raise ConfigError(
                "BPE shards have no non-overlapping and no reverse view; leave data.overlap and data.strand"
            )
        if settings.window <= NUM_SPECIAL_PER_WINDOW:
            raise ConfigError(f"data.window {settings.window} must hold [CLS], a token and [SEP]; raise --window")
        if settings.lengths not in LENGTHS:
            raise ConfigError(f"data.lengths {settings.lengths!r} must be one of {', '.join(LENGTHS)}")
        if settings.drop_to_multiple_of > 1 and len(names) > 1:
            raise ConfigError("data.remainder drop: several data sets have no common end of an epoch; set it to wrap")

    def _footprint(self, num_tokens: int) -> int:
        """Stored tokens that a window of so many tokens covers."""
        return (num_tokens - 1) * self.stride + 1

    @property
    def fingerprint(self) -> str:
        """The data's fingerprint: the manifest's, or those of all data sets joined by "+"."""
        return "+".join(reader.manifest.fingerprint for reader in self.readers)

    @property
    def num_windows(self) -> int:
        """Windows of one epoch over all data sets."""
        return sum(order.num_windows for order in self.samplers)

    def tokens_of_step(self, step: int) -> int:
        """Tokens of each window of a step, without [CLS] and [SEP]."""
        if self.settings.lengths == "full":
            return self.num_tokens
        return int(tokens_of_steps(self.seed, step, self.num_tokens))

    def locate(self, samples: ArrayLike) -> Windows:
        """Where the full windows of the samples lie. Costs the same for one and for a thousand: ask for many."""
        return self.order.locate(samples)

    def windows(self, samples: ArrayLike, step: int, found: Windows | None = None) -> WindowBatch:
        """Windows of sample indices (B,), all of one step; `found` is `locate(samples)`, if it is known already."""
        indices = np.asarray(samples, dtype=np.int64)
        found, num_tokens, is_replaced = self._placed(indices, step, found)
        footprint = self._footprint(num_tokens)
        ids = np.empty((len(indices), num_tokens), dtype=id_dtype(self.tokenizer.vocab_size))
        coordinates = (found.source, found.shard, found.segment, found.start)
        rows = zip(*(array.tolist() for array in coordinates), strict=True)
        for row, (source, shard, segment, start) in enumerate(rows):
            ids[row] = self.readers[source].tokens(shard, segment, start, start + footprint, self.stride)
        if found.reverse.any():
            # The first and the last token of a footprint are both in the view, so stride and flip commute.
            ids[found.reverse] = reverse_complement_ids(ids[found.reverse], int(self.tokenizer.k or 0))
        return WindowBatch(indices, ids, int(is_replaced.sum()))

    def coordinates(self, samples: ArrayLike, step: int) -> list[dict[str, Any]]:
        """`genome, contig, start, end, strand` of each window; bases of the forward strand, half-open; "+" or "-"."""
        found, num_tokens, _ = self._placed(np.asarray(samples, dtype=np.int64), step)
        coordinates = []
        for row in range(len(found.start)):
            reader = self.readers[int(found.source[row])]
            where = (int(found.shard[row]), int(found.segment[row]), int(found.start[row]))
            place = reader.place(*where, self._footprint(num_tokens))
            coordinates.append({**place, "strand": "-"} if found.reverse[row] else place)
        return coordinates

    def _placed(
        self, samples: NDArray[np.int64], step: int, found: Windows | None = None
    ) -> tuple[Windows, int, NDArray[np.bool_]]:
        """What is read for the samples: windows with their final start, their tokens, and which are stand-ins."""
        found = self.locate(samples) if found is None else found
        found, is_replaced = self._without_bad_shards(samples, found)
        num_tokens = self.tokens_of_step(step)
        if num_tokens == self.num_tokens:
            return found, num_tokens, is_replaced
        crop = crop_offsets(self.seed, samples, self.num_tokens, num_tokens) * self.stride
        start = found.start + crop
        return Windows(found.source, found.shard, found.segment, start, found.reverse), num_tokens, is_replaced

    def _without_bad_shards(self, samples: NDArray[np.int64], found: Windows) -> tuple[Windows, NDArray[np.bool_]]:
        """Put other windows of the same data set in place of those in bad shards, by a draw on the sample index."""
        wheres = list(zip(found.source.tolist(), found.shard.tolist(), strict=True))
        bad = {where for where in set(wheres) if not self.readers[where[0]].is_usable(where[1])}
        is_bad = np.array([where in bad for where in wheres]) if bad else np.zeros(len(wheres), dtype=bool)
        if not bad:
            return found, is_bad
        stand_ins = [self._stand_in(int(samples[row]), int(found.source[row])) for row in np.flatnonzero(is_bad)]
        good = found[~is_bad]
        back = np.argsort(np.concatenate([np.flatnonzero(~is_bad), np.flatnonzero(is_bad)]))
        return Windows.concatenate([good, *stand_ins])[back], is_bad

    def _stand_in(self, sample: int, source: int) -> Windows:
        """Another window of the data set, drawn on the sample index until its shard is good."""
        order = self.samplers[source]
        for attempt in itertools.count():
            bits = random.fold(random.fold(self._stand_in_key, sample), attempt)
            found = order.locate(random.below(bits, min(order.epoch_samples, 1 << 31)))
            if self.readers[source].is_usable(int(found.shard[0])):
                return found
            if attempt == _NUM_STAND_INS:
                break
        raise DataError(f"{self.readers[source].folder.shown}: hardly any shard can be read; copy or build them again")


VALIDATION_SEED = 0
"""Of held-out windows and their masks: runs with different seeds are asked the same."""


def make_dataset(config: RunConfig) -> WindowDataset:
    """The windows of a configuration, in order."""
    data = config.data
    settings = WindowSettings(
        split=data.split,
        window=data.window,
        overlap=data.overlap,
        strand=data.strand,
        lengths=data.lengths,
        num_streams=data.num_streams,
        block_windows=data.block_windows,
        drop_to_multiple_of=config.train.global_batch if data.remainder == "drop" else 1,
    )
    storage = StorageSettings(data.on_bad_shard, data.allow_pipe, data.cache_dir, data.cache_gb)
    return WindowDataset(data.path, data.weights, settings, config.train.seed, storage)


def make_validation_dataset(config: RunConfig) -> WindowDataset | None:
    """Held-out windows, full and of the forward strand, in an order that no seed changes; None where no window fits."""
    data, validation = config.data, config.validation
    storage = StorageSettings(data.on_bad_shard, data.allow_pipe, data.cache_dir, data.cache_gb)
    if not validation.every:
        return None
    having = []
    for path in data.path:
        manifest = prepared_folder(path, storage).manifest()
        stored = (data.window - NUM_SPECIAL_PER_WINDOW - 1) * (1 if data.overlap else manifest.tokenizer.k or 1) + 1
        if any(s.split == validation.split and max(s.segments, default=0) >= stored for s in manifest.shards):
            having.append(path)
    if not having:
        return None
    settings = WindowSettings(split=validation.split, window=data.window, overlap=data.overlap)
    return WindowDataset(having, [], settings, VALIDATION_SEED, storage)


def consumed_tokens(dataset: WindowDataset, plan: BatchPlan, step: int) -> int:
    """Tokens in the windows of the steps before `step`, [CLS] and [SEP] included."""
    if dataset.settings.lengths == "full":
        return plan.first_sample(step) * dataset.settings.window
    steps = np.arange(step + 1)
    batches = np.diff([plan.first_sample(int(before)) for before in steps])
    tokens = tokens_of_steps(dataset.seed, steps[:-1], dataset.num_tokens) + NUM_SPECIAL_PER_WINDOW
    return int((batches * tokens).sum())
