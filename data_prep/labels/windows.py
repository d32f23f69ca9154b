"""Labelled windows of fixed length around intervals, their sequences, and how many are dropped for each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.segments import ContigAxis
from dnabert_rm.genome.kmer import reverse_complement
from dnabert_rm.genome.reference import Genome


@dataclass(frozen=True, eq=False)
class LabelledWindows:
    """n windows of one length. Positions are 0-based and half-open, on the forward strand.

    `contig` (n,) is an index into the genome's contigs, `start` (n,) the first position. `is_minus` (n,) says that the
    sequence is the reverse complement. `label` (n,) is the label as it is written. `is_negative` (n,) marks negatives
    that the program has made.
    """

    contig: NDArray[np.int64]
    start: NDArray[np.int64]
    is_minus: NDArray[np.bool_]
    label: NDArray[np.str_]
    is_negative: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, chosen: Any) -> LabelledWindows:
        """Return the windows at `chosen`: indices, or a mask."""
        return LabelledWindows(**{name: column[chosen] for name, column in vars(self).items()})


def join(parts: Sequence[LabelledWindows]) -> LabelledWindows:
    """Return the windows of all parts, in order."""
    return LabelledWindows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


class Dropped(Counter[str]):
    """Number of dropped windows by reason."""

    def kept(self, is_kept: NDArray[np.bool_], reason: str) -> NDArray[np.bool_]:
        """Return the mask of kept windows, and count the others under `reason`."""
        if not is_kept.all():
            self[reason] += int((~is_kept).sum())
        return is_kept

    def keep(self, windows: LabelledWindows, is_kept: NDArray[np.bool_], reason: str) -> LabelledWindows:
        """Return the windows that are kept, and count the others under `reason`."""
        return windows[self.kept(is_kept, reason)]


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows of the tables: windows, their split (n,), and their letters (n, window) in the case of the genome."""

    windows: LabelledWindows
    split: NDArray[np.int64]
    letters: NDArray[np.uint8]

    def __getitem__(self, chosen: Any) -> Rows:
        """Return the rows at `chosen`: indices, or a mask."""
        return Rows(self.windows[chosen], self.split[chosen], self.letters[chosen])

    def joined(self, other: Rows) -> Rows:
        """Return these rows and `other`."""
        split = np.concatenate([self.split, other.split])
        return Rows(join([self.windows, other.windows]), split, np.concatenate([self.letters, other.letters]))


@dataclass(frozen=True, eq=False)
class Composition:
    """Shares of letters in n windows: G and C among A, C, G, T; lower case; and the number of other letters."""

    gc: NDArray[np.float64]
    lower: NDArray[np.float64]
    unknown: NDArray[np.int64]


class SequenceReader:
    """Reads windows of one length from a genome. `axis` has the coordinates along all its contigs."""

    def __init__(self, genome: Genome, window: int) -> None:
        """Read windows of `window` bases."""
        self.genome = genome
        self.window = window
        self.axis = ContigAxis.from_lengths([contig.length for contig in genome.contigs])

    def fits(self, windows: LabelledWindows) -> NDArray[np.bool_]:
        """Return whether each window lies inside its contig, shape (n,)."""
        return (windows.start >= 0) & (windows.start + self.window <= self.axis.lengths[windows.contig])

    def places(self, windows: LabelledWindows) -> NDArray[np.int64]:
        """Return the first position of each window along all contigs laid end to end, shape (n,)."""
        return self.axis.starts[windows.contig] + windows.start

    def letters(self, windows: LabelledWindows) -> NDArray[np.uint8]:
        """Return the letters of each window on its strand, in upper or lower case as in the file, (n, window)."""
        letters = np.empty((len(windows), self.window), dtype=np.uint8)
        names = self.genome.names
        for row in np.lexsort((windows.start, windows.contig)).tolist():
            start = int(windows.start[row])
            found = self.genome.fetch_letters(names[windows.contig[row]], start, start + self.window)
            if windows.is_minus[row]:
                found = np.frombuffer(reverse_complement(found.tobytes()), dtype=np.uint8)
            letters[row] = found
        return letters


def composition(letters: NDArray[np.uint8]) -> Composition:
    """Return the composition of sequences (n, window)."""
    upper = letters & np.uint8(0xDF)
    gc = ((upper == ord("G")) | (upper == ord("C"))).sum(axis=1)
    known = gc + ((upper == ord("A")) | (upper == ord("T"))).sum(axis=1)
    lower = (letters >= ord("a")).sum(axis=1)
    return Composition(gc / np.maximum(known, 1), lower / letters.shape[1], letters.shape[1] - known)
