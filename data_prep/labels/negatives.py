"""Negatives: windows of the genome that resemble positives in composition, or shuffled positives."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_prep.labels.options import LabelsSettings
from data_prep.labels.splits import SplitMap
from data_prep.labels.windows import Composition, LabelledWindows, SequenceReader, composition, join
from dnabert_rm.genome.intervals import merge
from dnabert_rm.utils import random
from dnabert_rm.utils.progress import progress_bar

CANDIDATES_PER_POSITIVE = 10
"""Random windows that are drawn in a round for each negative that is still missing."""
MIN_CANDIDATES = 10_000
MAX_ROUNDS = 20
WINDOWS_READ = 4096
"""Windows whose letters are in memory at a time."""


class NegativeSampler:
    """Draws windows of the genome, and gives each positive some that have its split and its composition.

    A window is a candidate if it has at most --unknown-bases other letters and keeps --distance from all intervals.
    Candidates do not overlap. A positive and a candidate are a match if they are in the same cell of a grid, whose
    cells are as wide as the tolerances.
    """

    def __init__(
        self, settings: LabelsSettings, reader: SequenceReader, split_map: SplitMap, taken: NDArray[np.int64]
    ) -> None:
        """`taken` (n, 2) holds the ranges that negatives keep away from, along all contigs laid end to end."""
        self._settings = settings
        self._reader = reader
        self._split_map = split_map
        self._taken = merge(taken)
        self._chosen = np.empty((0, 2), dtype=np.int64)
        """Ranges of the negatives chosen so far."""
        self._key = random.key(settings.seed, "labels negatives")

    def sample(
        self, positives: LabelledWindows, shares: Composition, split: NDArray[np.int64]
    ) -> tuple[LabelledWindows, NDArray[np.int64]]:
        """Return negatives, and the number of each positive's missing ones, shape (n,).

        Args:
            shares: Composition of the positives.
            split: Split of each positive, (n,).
        """
        missing = np.full(len(positives), self._settings.negatives_per_positive)
        cells = self._cells(shares, split)
        found: list[LabelledWindows] = [positives[:0]]
        with progress_bar("negatives", int(missing.sum()), "window", leave=False) as bar:
            for number in range(MAX_ROUNDS):
                if not missing.any():
                    break
                candidates, candidate_cells = self._candidates(number, int(missing.sum()), positives)
                rows, partners = match(cells, missing, candidate_cells)
                chosen = replace(candidates[partners], is_minus=positives.is_minus[rows])
                np.subtract.at(missing, rows, 1)
                places = self._reader.places(chosen)
                self._chosen = np.concatenate([self._chosen, np.stack([places, places + self._reader.window], axis=1)])
                found.append(chosen)
                bar.update(len(rows))
        return join(found), missing

    def _cells(self, shares: Composition, split: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cell of the grid for each window, shape (n,)."""
        width = int(1 / self._settings.repeat_tolerance) + 2
        gc = np.floor(shares.gc / self._settings.gc_tolerance).astype(np.int64)
        lower = np.floor(shares.lower / self._settings.repeat_tolerance).astype(np.int64)
        return (gc * width + lower) * 3 + split

    def _candidates(self, number: int, count: int, like: LabelledWindows) -> tuple[LabelledWindows, NDArray[np.int64]]:
        """Return new candidates that do not overlap each other or chosen negatives, and their cells."""
        window, lengths = self._reader.window, self._reader.axis.lengths
        places = np.maximum(lengths - window + 1, 0)
        count = max(MIN_CANDIDATES, CANDIDATES_PER_POSITIVE * count)
        # Places are numbered along all contigs. A uniform number has 53 bits, enough for any genome.
        words = random.uniform(random.fold(random.fold(self._key, number), np.arange(count)))
        place = np.unique((words * places.sum()).astype(np.int64))
        ends = np.cumsum(places)
        contig = np.searchsorted(ends, place, "right")
        start = place - (ends - places)[contig]
        candidates = LabelledWindows(
            contig=contig,
            start=start,
            is_minus=np.zeros(len(start), dtype=bool),
            label=np.full(len(start), like.label.dtype.type("0")),
            is_negative=np.ones(len(start), dtype=bool),
        )
        places = self._reader.places(candidates)
        candidates = candidates[is_free(places, window, self._taken) & is_free(places, window, merge(self._chosen))]
        candidates = candidates[first_of_overlapping(self._reader.places(candidates), window)]
        split = self._split_map.splits_of(self._reader.places(candidates), window)
        candidates, split = candidates[split >= 0], split[split >= 0]
        shares = self._composition(candidates)
        usable = shares.unknown <= self._settings.unknown_bases
        return candidates[usable], self._cells(shares, split)[usable]

    def _composition(self, windows: LabelledWindows) -> Composition:
        """Return the composition of windows. Their letters are read in parts, to bound the memory."""
        parts = [
            composition(self._reader.letters(windows[first : first + WINDOWS_READ]))
            for first in range(0, max(1, len(windows)), WINDOWS_READ)
        ]
        return Composition(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def is_free(places: NDArray[np.int64], window: int, ranges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each window, which begins at one of `places` (n,), overlaps no range of a set, shape (n,)."""
    # Ranges that end at or before the window's start, against those that start before the window's end.
    before = np.searchsorted(ranges[:, 1], places, "right")
    return before == np.searchsorted(ranges[:, 0], places + window, "left")


def first_of_overlapping(places: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
    """Return a mask of windows, which begin at ascending `places` (n,): no window overlaps a kept one before it."""
    kept = np.zeros(len(places), dtype=bool)
    end = 0
    for row, place in enumerate(places.tolist()):
        if place >= end:
            kept[row] = True
            end = place + window
    return kept


def match(
    cells: NDArray[np.int64], missing: NDArray[np.int64], candidate_cells: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give candidates to positives of the same cell, each candidate once.

    Args:
        cells: Cell of each positive, (n,).
        missing: Number of candidates that each positive takes, (n,).
        candidate_cells: Cell of each candidate, (m,).

    Returns: The rows of the positives, and beside them those of their candidates; both of the same length.
    """
    wanting = np.repeat(np.arange(len(cells)), missing)
    wanting = wanting[np.argsort(cells[wanting], kind="stable")]
    order = np.argsort(random.fold(random.key(0, "labels match"), np.arange(len(candidate_cells))), kind="stable")
    order = order[np.argsort(candidate_cells[order], kind="stable")]
    # The i-th request of a cell takes the i-th candidate of the cell.
    wanted, offered = cells[wanting], candidate_cells[order]
    rank = np.arange(len(wanted)) - np.searchsorted(wanted, wanted, "left")
    place = np.searchsorted(offered, wanted, "left") + rank
    is_there = place < np.searchsorted(offered, wanted, "right")
    return wanting[is_there], order[place[is_there]]


def shuffle_sequence(letters: bytes, key: np.uint64) -> bytes:
    """Return a random sequence with the same count of each pair of neighbouring letters.

    It also has the same first and last letter. A walk visits all pairs as edges between letters. For each letter but
    the last one, a random last edge is drawn until these edges lead to the last letter from everywhere; the other edges
    are shuffled (Altschul and Erickson, "Significance of nucleotide sequence alignments", 1985).
    """
    if len(letters) < 3:
        return letters
    successors: dict[int, list[int]] = {}
    for one, other in itertools.pairwise(letters):
        successors.setdefault(one, []).append(other)
    final = letters[-1]
    draw = np.random.Generator(np.random.Philox(int(key)))
    while True:
        last = {one: others[int(draw.integers(len(others)))] for one, others in successors.items() if one != final}
        if all(_leads_to(one, final, last) for one in last):
            break
    walks = {}
    for one, others in successors.items():
        rest = list(others)
        if one in last:
            rest.remove(last[one])
        edges = [rest[i] for i in draw.permutation(len(rest))]
        walks[one] = iter([*edges, last[one]] if one in last else edges)
    result = bytearray([letters[0]])
    for _ in range(len(letters) - 1):
        result.append(next(walks[result[-1]]))
    return bytes(result)


def _leads_to(one: int, final: int, last: dict[int, int]) -> bool:
    """Return whether the last edges lead from a letter to the final one."""
    for _ in range(len(last) + 1):
        if one == final:
            return True
        one = last[one]
    return False
