"""Dataset of training windows, addressed by sample index.

A sampler gives the position of each window, and shard readers give its tokens.
"""

from __future__ import annotations

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
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.genome.kmer import id_dtype, reverse_complement_ids
from dnabert_rm.genome.soft_mask import SoftMask, num_window_bytes
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError, DataError

NUM_SPECIAL_PER_WINDOW = 2
"""[CLS] and [SEP]."""
VALIDATION_SEED = 0
"""Fixed seed of held-out windows and their masks, so that runs with different seeds are scored on the same data."""
_MAX_REPLACEMENT_TRIES = 100


# Builders from a run's configuration


def make_dataset(config: RunConfig) -> WindowDataset:
    """Return the dataset of training windows for a configuration."""
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
        soft_mask=data.repeat_weight < 1,
    )
    return WindowDataset(data.path, data.weights, settings, config.train.seed, _storage_settings(config))


def make_validation_dataset(config: RunConfig) -> WindowDataset | None:
    """Return the dataset of held-out windows for a configuration.

    All windows have the full length and come from the forward strand. Their order does not depend on the seed of the
    run.

    Returns None if validation is off, or if no data set has a held-out segment long enough for a window.
    """
    data, validation = config.data, config.validation
    if not validation.every:
        return None
    storage = _storage_settings(config)
    settings = WindowSettings(split=validation.split, window=data.window, overlap=data.overlap)
    paths = [path for path in data.path if _has_window(path, settings, storage)]
    return WindowDataset(paths, [], settings, VALIDATION_SEED, storage) if paths else None


def held_out_readers(config: RunConfig) -> list[SplitReader]:
    """Return readers of the held-out split, for all data sets of a configuration that have one."""
    storage, split = _storage_settings(config), config.validation.split
    manifests = {path: prepared_folder(path, storage).manifest() for path in config.data.path}
    return [
        SplitReader(path, split, storage)
        for path, manifest in manifests.items()
        if any(shard.split == split for shard in manifest.shards)
    ]


def _storage_settings(config: RunConfig) -> StorageSettings:
    data = config.data
    return StorageSettings(data.on_bad_shard, data.cache_dir, data.cache_gb)


def _has_window(path: str, settings: WindowSettings, storage: StorageSettings) -> bool:
    """Return whether a prepared folder has a segment of `settings.split` that is long enough for a window."""
    manifest = prepared_folder(path, storage).manifest()
    stride = 1 if settings.overlap else manifest.tokenizer.k or 1
    stored_tokens = (settings.window - NUM_SPECIAL_PER_WINDOW - 1) * stride + 1
    return any(shard.split == settings.split and (shard.segments >= stored_tokens).any() for shard in manifest.shards)


# The dataset


@dataclass(frozen=True)
class WindowSettings:
    """Settings for cutting windows from stored segments of contigs. The fields match `[data]` in the configuration.

    If `soft_mask` is true, the soft mask of each window is read too.
    """

    split: str = "train"
    window: int = 512
    overlap: bool = True
    strand: str = "forward"
    lengths: str = "full"
    num_streams: int = 64
    block_windows: int = 1 << 16
    drop_to_multiple_of: int = 1
    soft_mask: bool = False


@dataclass(frozen=True)
class WindowBatch:
    """B windows of T tokens each, without [CLS] and [SEP].

    `samples` (B,) int64 holds the sample indices. `ids` (B, T) holds the token ids, uint16 or uint32.
    `num_replaced` is the number of windows that replace a window of a damaged or missing shard. `soft_mask` is None if
    `WindowSettings.soft_mask` is not set.
    """

    samples: NDArray[np.int64]
    ids: NDArray
    num_replaced: int = 0
    soft_mask: SoftMask | None = None


class WindowDataset:
    """Dataset of training windows. Does not import torch.

    A window depends only on the sample index, the step, and which shards are damaged or missing.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        weights: Sequence[float],
        settings: WindowSettings,
        seed: int,
        storage: StorageSettings | None = None,
    ) -> None:
        """Read the manifests, but no shards.

        Raises `DataError` for invalid data, `ConfigError` for invalid settings.

        Args:
            folders: Paths or URLs of prepared folders.
            weights: Relative number of samples from each folder; empty for equal numbers.
            settings: Settings for cutting windows.
            seed: Seed of the order of the windows, and of the length and start of shortened windows.
            storage: Settings for shard access.
        """
        self.settings = settings
        self.seed = seed
        self.readers = [SplitReader(folder, settings.split, storage) for folder in folders]
        self.tokenizer = self.readers[0].manifest.tokenizer
        self._check(folders)
        self.num_tokens = settings.window - NUM_SPECIAL_PER_WINDOW
        self.stride = 1 if settings.overlap else int(self.tokenizer.k or 1)
        self.samplers = [
            EpochSampler(
                reader.shard_segments,
                self._stored_tokens(self.num_tokens),
                seed,
                strand=settings.strand,
                num_streams=settings.num_streams,
                block_windows=settings.block_windows,
                drop_to_multiple_of=settings.drop_to_multiple_of,
                source=number,
            )
            for number, reader in enumerate(self.readers)
        ]
        self._weights = weights or [1.0] * len(self.samplers)
        self.order: Sampler = (
            self.samplers[0] if len(self.samplers) == 1 else MixtureSampler(self.samplers, self._weights, seed)
        )
        # The name seeds the random numbers, so it must not change.
        self._replacement_key = random.key(seed, "stand-in")

    def _check(self, folders: Sequence[str | Path]) -> None:
        """Raise `ConfigError` if the settings contradict the data or each other."""
        settings, names = self.settings, [str(folder) for folder in folders]
        if any(reader.manifest.tokenizer != self.tokenizer for reader in self.readers):
            raise ConfigError(f"the data sets {names} have different tokenizers; build them with the same tokenizer")
        if self.tokenizer.k is None and (not settings.overlap or settings.strand != "forward"):
            raise ConfigError(
                "BPE shards support neither non-overlapping tokens nor the reverse strand; leave data.overlap and "
                "data.strand unset"
            )
        if settings.soft_mask:
            self._check_soft_mask()
        if settings.window <= NUM_SPECIAL_PER_WINDOW:
            raise ConfigError(f"data.window {settings.window} can't hold [CLS], a token and [SEP]; raise --window")
        if settings.lengths not in LENGTHS:
            raise ConfigError(f"data.lengths {settings.lengths!r} must be one of {', '.join(LENGTHS)}")
        if settings.drop_to_multiple_of > 1 and len(names) > 1:
            raise ConfigError("data.remainder 'drop' needs a single data set; set data.remainder to wrap")

    def _check_soft_mask(self) -> None:
        """Raise `ConfigError` for BPE shards, and `DataError` for a folder that was built without soft masks."""
        if self.tokenizer.k is None:
            raise ConfigError("data.repeat_weight: needs k-mers; leave data.repeat_weight unset for BPE shards")
        for reader in self.readers:
            if not reader.manifest.options.get("record_soft_mask"):
                raise DataError(
                    f"{reader.folder.shown}: has no record of soft-masked bases, which data.repeat_weight needs; build "
                    "the data again with --record-soft-mask, or leave data.repeat_weight unset"
                )

    def _stored_tokens(self, num_tokens: int) -> int:
        """Return the number of consecutive stored tokens that a window of `num_tokens` tokens covers.

        Shards store overlapping k-mers. So a window of non-overlapping k-mers takes every k-th stored token.
        """
        return (num_tokens - 1) * self.stride + 1

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the manifest. For several data sets, their fingerprints joined by "+"."""
        return "+".join(reader.manifest.fingerprint for reader in self.readers)

    @property
    def num_windows(self) -> int:
        """Number of windows in all data sets."""
        return sum(sampler.num_windows for sampler in self.samplers)

    @property
    def epoch_samples(self) -> float:
        """Number of samples of an epoch: of several data sets, until one of them has been read completely."""
        total = sum(self._weights)
        sizes = zip(self.samplers, self._weights, strict=True)
        return min(sampler.num_windows * total / weight for sampler, weight in sizes)

    def tokens_of_step(self, step: int) -> int:
        """Return the number of tokens per window in a step, without [CLS] and [SEP]."""
        if self.settings.lengths == "full":
            return self.num_tokens
        return int(tokens_of_steps(self.seed, step, self.num_tokens))

    def locate(self, samples: ArrayLike) -> Windows:
        """Return the positions of the full-length windows with the given sample indices.

        A call for a thousand samples takes little longer than for one, so locate many samples in one call.
        """
        return self.order.locate(samples)

    def windows(self, samples: ArrayLike, step: int, found: Windows | None = None) -> WindowBatch:
        """Read the windows with the given sample indices. All samples must belong to `step`.

        Pass the result of `locate(samples)` as `found` if it is already known.
        """
        indices = np.asarray(samples, dtype=np.int64)
        found, num_tokens, is_replaced = self._resolve(indices, step, found)
        stored_tokens = self._stored_tokens(num_tokens)
        ids = np.empty((len(indices), num_tokens), dtype=id_dtype(self.tokenizer.vocab_size))
        positions = (found.source, found.shard, found.segment, found.start)
        rows = zip(*(array.tolist() for array in positions), strict=True)
        for row, (source, shard, segment, start) in enumerate(rows):
            ids[row] = self.readers[source].tokens(shard, segment, start, start + stored_tokens, self.stride)
        if found.reverse.any():
            # The stride keeps both the first and the last stored token, so it can be applied before the reversal.
            ids[found.reverse] = reverse_complement_ids(ids[found.reverse], int(self.tokenizer.k or 0))
        soft_mask = self._soft_mask(found, num_tokens) if self.settings.soft_mask else None
        return WindowBatch(indices, ids, int(is_replaced.sum()), soft_mask)

    def _soft_mask(self, found: Windows, num_tokens: int) -> SoftMask:
        """Read the soft mask of windows of `num_tokens` tokens."""
        k = int(self.tokenizer.k or 0)
        num_bases = self._stored_tokens(num_tokens) + k - 1
        num_bytes = num_window_bytes(num_bases)
        positions = (found.source, found.shard, found.segment, found.start >> 3)
        rows = zip(*(array.tolist() for array in positions), strict=True)
        masks = [self.readers[source].soft_mask(*position, num_bytes) for source, *position in rows]
        return SoftMask.of_windows(masks, found.start & 7, found.reverse, num_bases, k=k, stride=self.stride)

    def coordinates(self, samples: ArrayLike, step: int) -> list[dict[str, Any]]:
        """Return `genome, contig, start, end, strand` of each window.

        Start and end are 0-based half-open positions on the forward strand. The strand is "+" or "-".
        """
        found, num_tokens, _ = self._resolve(np.asarray(samples, dtype=np.int64), step)
        stored_tokens = self._stored_tokens(num_tokens)
        coordinates = []
        for row in range(len(found.start)):
            reader = self.readers[int(found.source[row])]
            position = (int(found.shard[row]), int(found.segment[row]), int(found.start[row]))
            forward = reader.coordinates(*position, stored_tokens)
            coordinates.append({**forward, "strand": "-"} if found.reverse[row] else forward)
        return coordinates

    def _resolve(
        self, samples: NDArray[np.int64], step: int, found: Windows | None = None
    ) -> tuple[Windows, int, NDArray[np.bool_]]:
        """Return the windows to read, the number of tokens per window, and a bool array that marks replaced windows."""
        found = self.locate(samples) if found is None else found
        found, is_replaced = self._replace_bad(samples, found)
        num_tokens = self.tokens_of_step(step)
        if num_tokens == self.num_tokens:
            return found, num_tokens, is_replaced
        crop = crop_offsets(self.seed, samples, self.num_tokens, num_tokens) * self.stride
        start = found.start + crop
        return Windows(found.source, found.shard, found.segment, start, found.reverse), num_tokens, is_replaced

    def _replace_bad(self, samples: NDArray[np.int64], found: Windows) -> tuple[Windows, NDArray[np.bool_]]:
        """Replace windows of damaged or missing shards with other windows of the same data set.

        Return all windows, and a bool array that marks the replaced windows.
        """
        shards = list(zip(found.source.tolist(), found.shard.tolist(), strict=True))
        bad = {(source, shard) for source, shard in set(shards) if not self.readers[source].is_usable(shard)}
        is_bad = np.array([shard in bad for shard in shards]) if bad else np.zeros(len(shards), dtype=bool)
        if not bad:
            return found, is_bad
        good_rows, bad_rows = np.flatnonzero(~is_bad), np.flatnonzero(is_bad)
        replacements = [self._replacement(int(samples[row]), int(found.source[row])) for row in bad_rows]
        original_order = np.argsort(np.concatenate([good_rows, bad_rows]))
        return Windows.concatenate([found[good_rows], *replacements])[original_order], is_bad

    def _replacement(self, sample: int, source: int) -> Windows:
        """Return a random window from a readable shard of data set `source`. The sample index determines the choice.

        Raises `DataError` if too many random choices fall on damaged or missing shards.
        """
        sampler = self.samplers[source]
        for attempt in range(_MAX_REPLACEMENT_TRIES):
            bits = random.fold(random.fold(self._replacement_key, sample), attempt)
            found = sampler.locate(random.below(bits, min(sampler.epoch_samples, 1 << 31)))
            if self.readers[source].is_usable(int(found.shard[0])):
                return found
        raise DataError(
            f"{self.readers[source].folder.shown}: hardly any shard can be read; copy or build the data again"
        )


def consumed_tokens(dataset: WindowDataset, plan: BatchPlan, step: int) -> int:
    """Return the number of tokens in the windows of all steps before `step`, [CLS] and [SEP] included."""
    if dataset.settings.lengths == "full":
        return plan.first_sample(step) * dataset.settings.window
    steps = np.arange(step + 1)
    batches = np.diff([plan.first_sample(int(before)) for before in steps])
    tokens = tokens_of_steps(dataset.seed, steps[:-1], dataset.num_tokens) + NUM_SPECIAL_PER_WINDOW
    return int((batches * tokens).sum())
