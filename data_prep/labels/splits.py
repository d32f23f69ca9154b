"""Train, dev and test of labelled windows: by whole contigs, by random blocks of the genome, or as in pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.labels.options import LabelsSettings
from data_prep.labels.windows import LabelledWindows, SequenceReader
from data_prep.sharding.splits import block_starts, matching
from dnabert_rm.data.manifest import Manifest
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.data.storage import StorageSettings, prepared_folder
from dnabert_rm.genome.intervals import merge
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

SPLITS = ("train", "dev", "test")
TRAIN, DEV, TEST = range(3)
BLOCK_BASES = 100_000
"""Bases per random block, if not set."""


@dataclass(frozen=True, eq=False)
class SplitMap:
    """The split of each block of the genome.

    `starts` (blocks,) is the first position of each block along all contigs laid end to end, in ascending order.
    `split` (blocks,) is `TRAIN`, `DEV` or `TEST`.
    """

    starts: NDArray[np.int64]
    split: NDArray[np.int64]

    def blocks_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the block of each position along all contigs, shape (n,)."""
        return np.searchsorted(self.starts, places, "right") - 1

    def splits_of(self, places: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return the split of windows that begin at `places` (n,), or -1 if one crosses into another split, (n,)."""
        first, last = self.blocks_at(places), self.blocks_at(places + window - 1)
        # A window longer than a block can have a third block between the two.
        changes = np.concatenate([[0], np.cumsum(self.split[1:] != self.split[:-1])])
        return np.where(changes[first] == changes[last], self.split[first], -1)


def make_split_map(settings: LabelsSettings, reader: SequenceReader, windows: LabelledWindows) -> SplitMap:
    """Return the split of each part of the genome.

    Contigs are divided into blocks of nearly equal length. All blocks of --val-contigs are dev, all of --test-contigs
    test. Of the other blocks, those with windows are shuffled: the first ones, until they hold --val-fraction of all
    `windows`, are dev, the next ones test. Blocks without windows get the same shares, so that the negatives of each
    split come from both kinds.

    With --prepared, split val of the prepared data is dev, split test is test, and all else is train.

    Raises `ConfigError` for a pattern that matches no contig, for a contig of both flags, and for prepared data of
    another genome or without held-out splits.
    """
    if settings.prepared is not None:
        return _splits_of_pretraining(settings.prepared, reader)
    contigs = reader.genome.contigs
    is_dev = matching(contigs, settings.val_contigs, "--val-contigs")
    is_test = matching(contigs, settings.test_contigs, "--test-contigs")
    if (is_dev & is_test).any():
        name = contigs[int(np.flatnonzero(is_dev & is_test)[0])].name
        raise ConfigError(f"--val-contigs and --test-contigs: contig {name!r} is in both; pass it to only one of them")
    starts = block_starts(reader.axis, settings.block_bases or BLOCK_BASES)
    split = np.where(is_dev, DEV, np.where(is_test, TEST, TRAIN))[reader.axis.contig_of(starts)]
    blocks = SplitMap(starts, split)
    held = np.bincount(blocks.blocks_at(reader.places(windows)), minlength=len(starts))
    order = random.permutation(random.key(settings.seed, "labels blocks"), len(starts))
    order = order[split[order] == TRAIN]
    dev, test = settings.fractions
    for chosen, sizes, total in (
        (order[held[order] > 0], held, len(windows)),
        (order[held[order] == 0], np.ones_like(held), int((held[order] == 0).sum())),
    ):
        before = np.cumsum(sizes[chosen]) - sizes[chosen]
        split[chosen] = np.where(before < dev * total, DEV, np.where(before < (dev + test) * total, TEST, TRAIN))
    return blocks


def _splits_of_pretraining(folder: str, reader: SequenceReader) -> SplitMap:
    """Return the split of each part of the genome according to prepared data.

    Raises `ConfigError` for data of another genome, or without held-out splits.
    """
    manifest = prepared_folder(folder, StorageSettings()).manifest()
    genome = _genome_of(manifest, folder, reader)
    index = {name: number for number, name in enumerate(reader.genome.names)}
    held_out = {shard.split for shard in manifest.shards} & {"val", "test"}
    if not held_out:
        raise ConfigError(
            f"--prepared {folder}: holds out nothing; build it with --val-fraction and --test-fraction, for example"
        )
    edges, split = [np.zeros(1, dtype=np.int64)], [np.array([TRAIN])]
    for name in sorted(held_out):
        metas = _segments(SplitReader(folder, name))
        ranges = [
            [int(reader.axis.starts[index[meta["contig"]]]) + meta[edge] for edge in ("start", "end")]
            for meta in metas
            if meta["genome"] == genome and meta["contig"] in index
        ]
        merged = merge(np.array(ranges, dtype=np.int64).reshape(-1, 2))
        edges += [merged[:, 1], merged[:, 0]]
        split += [np.full(len(merged), number) for number in (TRAIN, DEV if name == "val" else TEST)]
    starts, splits = np.concatenate(edges), np.concatenate(split)
    # Where one held-out part ends and another begins, the beginning counts: `blocks_at` takes the last of equal starts.
    order = np.lexsort((splits != TRAIN, starts))
    return SplitMap(starts[order], splits[order])


def _segments(reader: SplitReader) -> Iterator[dict[str, Any]]:
    """Yield the coordinates of each segment of a split."""
    for shard, lengths in enumerate(reader.shard_segments):
        for segment in range(len(lengths)):
            yield reader.meta(shard, segment)


def _genome_of(manifest: Manifest, folder: str, reader: SequenceReader) -> str:
    """Return the name in the prepared data of the reader's genome. Raises `ConfigError` if it is not there."""
    lengths = {contig.name: contig.length for contig in reader.genome.contigs}
    same_lengths: dict[str, bool] = {}
    for row in manifest.contigs:
        if row.contig in lengths:
            same_lengths[row.genome] = same_lengths.get(row.genome, True) and lengths[row.contig] == row.length
    found = [genome for genome, is_same in same_lengths.items() if is_same]
    if len(found) == 1:
        return found[0]
    reason = "no genome with these contigs and lengths" if not found else f"several such genomes: {', '.join(found)}"
    raise ConfigError(f"--prepared {folder}: has {reason}; pass the data that were built from --fasta")
