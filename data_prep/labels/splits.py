"""Train, dev and test of labelled windows: by whole contigs, or by random blocks of the genome."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.labels.options import LabelsSettings
from data_prep.labels.windows import SequenceReader, Windows
from data_prep.sharding.splits import block_starts, matching
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError

SPLITS = ("train", "dev", "test")
TRAIN, DEV, TEST = range(3)


@dataclass(frozen=True, eq=False)
class Territories:
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


def make_territories(settings: LabelsSettings, reader: SequenceReader, windows: Windows) -> Territories:
    """Return the split of each part of the genome.

    Contigs are divided into blocks of nearly equal length. All blocks of --val-contigs are dev, all of --test-contigs
    test. Of the other blocks, those with windows are shuffled: the first ones, until they hold --val-fraction of all
    `windows`, are dev, the next ones test. Blocks without windows get the same shares, so that the negatives of each
    split come from both kinds.

    Raises `ConfigError` for a pattern that matches no contig, and for a contig of both flags.
    """
    contigs = reader.genome.contigs
    is_dev = matching(contigs, settings.val_contigs, "--val-contigs")
    is_test = matching(contigs, settings.test_contigs, "--test-contigs")
    if (is_dev & is_test).any():
        name = contigs[int(np.flatnonzero(is_dev & is_test)[0])].name
        raise ConfigError(f"--val-contigs and --test-contigs: contig {name!r} is in both; pass it to only one of them")
    starts = block_starts(reader.axis, settings.block_bases)
    split = np.where(is_dev, DEV, np.where(is_test, TEST, TRAIN))[reader.axis.contig_of(starts)]
    blocks = Territories(starts, split)
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
