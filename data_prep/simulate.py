"""Command `simulate`: write a genome with learnable structure, and labelled sequences with the same structure.

The genome is a third-order Markov sequence, overwritten with lower-case copies of repeat families, with planted
elements, and with runs of N. An element is a few motifs in a fixed order at nearly fixed distances.

A labelled sequence has the same Markov background and contains one element. For label 0 the bases within each motif are
shuffled, so base composition does not reveal the label. All random numbers are counter-based (`utils/random.py`).
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import codes_to_bases
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError, DataError

CONTIG_SHARES = (0.4, 0.25, 0.2, 0.1, 0.05)
NUM_FAMILIES = 10
REPEAT_FRACTION = 0.25
NUM_ELEMENTS = 2
MOTIFS_PER_ELEMENT = 3
MOTIF_BASES = 10
ELEMENT_EVERY_BASES = 160
WINDOW_BASES = 120
EVAL_ROWS = 1000
LINE_BASES = 60
_CHUNK_BASES = 2000


def run(folder: Path, bases: int, rows: int, seed: int) -> int:
    """Run `simulate`: write genome.fa, train.csv, dev.csv and test.csv into `folder`."""
    if bases < 20_000:
        raise ConfigError(f"--bases {bases}: must be at least 20000")
    if rows < 2:
        raise ConfigError(f"--rows {rows}: must be at least 2")
    rng = SequentialRandom(seed, "world")
    cumulative = np.cumsum(_transition_probabilities(rng), axis=1)
    elements = [_random_element(rng) for _ in range(NUM_ELEMENTS)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_fasta(folder / "genome.fa", _genome(bases, cumulative, elements, SequentialRandom(seed, "genome")))
        for name, count in (("train", rows), ("dev", EVAL_ROWS), ("test", EVAL_ROWS)):
            _write_labelled(folder / f"{name}.csv", count, cumulative, elements, SequentialRandom(seed, name))
    except OSError as error:
        raise DataError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    print(
        f"{folder}: genome.fa ({bases:,} bases), train.csv ({rows:,} rows), dev.csv and test.csv ({EVAL_ROWS:,} each)"
    )
    return 0


class SequentialRandom:
    """Random number generator for one seed and purpose. Each call returns the next numbers."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = random.key(seed, f"simulate {purpose}")
        self._calls = 0

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Return an array of this shape with uniform random numbers in [0, 1)."""
        self._calls += 1
        key = random.fold(self._key, self._calls)
        return random.uniform(random.fold(key, np.arange(int(np.prod(shape))))).reshape(shape)

    def below(self, bound: int, *shape: int) -> NDArray[np.int64]:
        """Return an array of this shape with uniform random integers from 0 to bound - 1."""
        return (self.uniform(*shape) * bound).astype(np.int64)


# The model: background probabilities and elements


def _transition_probabilities(rng: SequentialRandom) -> NDArray[np.float64]:
    """Return random probabilities of each base, given the three preceding bases, shape (64, 4)."""
    weights = 0.1 + rng.uniform(64, 4) ** 2
    return weights / weights.sum(axis=1, keepdims=True)


def background(size: int, cumulative: NDArray[np.float64], rng: SequentialRandom) -> NDArray[np.uint8]:
    """Return a third-order Markov sequence as base codes, shape (size,).

    The sequence is joined from independent chunks. All chunks are generated in parallel, one base per loop iteration.

    Args:
        cumulative: Cumulative transition probabilities, (64, 4).
    """
    chunks = -(-size // _CHUNK_BASES)
    numbers = rng.uniform(_CHUNK_BASES, chunks)
    context = rng.below(64, chunks)
    codes = np.empty((_CHUNK_BASES, chunks), np.uint8)
    for i in range(_CHUNK_BASES):
        codes[i] = (numbers[i][:, None] >= cumulative[context, :3]).sum(axis=1)
        context = (context * 4 + codes[i]) % 64
    return codes.T.ravel()[:size]


@dataclass(frozen=True)
class Element:
    """Planted element: motifs as base codes, and the number of bases after each motif.

    `motifs` has the shape (MOTIFS_PER_ELEMENT, MOTIF_BASES). `spacers` has one number per motif.
    """

    motifs: NDArray[np.uint8]
    spacers: tuple[int, ...]

    @property
    def max_bases(self) -> int:
        """Largest possible length of a planted copy of the element, in bases."""
        return len(self.motifs) * (MOTIF_BASES + 1) + sum(self.spacers)

    def plant(self, codes: NDArray[np.uint8], start: int, rng: SequentialRandom, shuffled: bool = False) -> None:
        """Write one copy of the element into the base codes `codes`, beginning at position `start`.

        A few bases are mutated, and the distance after each motif varies by at most one base.

        Args:
            shuffled: Whether to shuffle the bases within each motif.
        """
        jitter = rng.below(3, len(self.motifs)) - 1
        mutated = rng.uniform(*self.motifs.shape) < 0.05
        letters = np.where(mutated, rng.below(4, *self.motifs.shape), self.motifs).astype(np.uint8)
        if shuffled:
            letters = np.take_along_axis(letters, np.argsort(rng.uniform(*letters.shape), axis=1), axis=1)
        for motif, spacer, shift in zip(letters, self.spacers, jitter.tolist(), strict=True):
            codes[start : start + MOTIF_BASES] = motif
            start += MOTIF_BASES + spacer + shift


def _random_element(rng: SequentialRandom) -> Element:
    motifs = rng.below(4, MOTIFS_PER_ELEMENT, MOTIF_BASES).astype(np.uint8)
    return Element(motifs, tuple((6 + rng.below(10, MOTIFS_PER_ELEMENT)).tolist()))


# The genome


def _genome(size: int, cumulative: NDArray, elements: list[Element], rng: SequentialRandom) -> NDArray[np.uint8]:
    """Return the genome as letters (size,): background, lower-case repeats, elements and runs of N."""
    codes = background(size, cumulative, rng)
    lower = np.zeros(size, dtype=bool)
    _plant_repeats(codes, lower, rng)
    count = size // ELEMENT_EVERY_BASES
    starts = ELEMENT_EVERY_BASES * np.arange(count) + rng.below(ELEMENT_EVERY_BASES // 2, count)
    for start, kind in zip(starts.tolist(), rng.below(NUM_ELEMENTS, count).tolist(), strict=True):
        elements[kind].plant(codes, min(start, size - elements[kind].max_bases), rng)
    letters = np.frombuffer(codes_to_bases(codes), np.uint8) | np.where(lower, np.uint8(32), np.uint8(0))
    gaps = max(3, size // 500_000)
    for start, length in zip(rng.below(size, gaps).tolist(), (1 + rng.below(2000, gaps)).tolist(), strict=True):
        letters[start : start + length] = ord("N")
    return letters


def _plant_repeats(codes: NDArray[np.uint8], lower: NDArray[np.bool_], rng: SequentialRandom) -> None:
    """Overwrite about `REPEAT_FRACTION` of the genome `codes` with copies of repeat families.

    `lower` is set to True at the overwritten positions, which are later written in lower case. A copy can be on either
    strand. In each copy, 5 to 20 % of the bases are replaced by random bases.
    """
    families = [rng.below(4, int(length)).astype(np.uint8) for length in 200 + rng.below(800, NUM_FAMILIES)]
    size = len(codes)
    written = 0
    while written < REPEAT_FRACTION * size:
        family = families[int(rng.below(NUM_FAMILIES, 1)[0])]
        start = int(rng.below(size - len(family), 1)[0])
        strand, divergence = rng.uniform(2)
        mutated = rng.uniform(len(family)) < 0.05 + 0.15 * divergence
        copy = np.where(mutated, rng.below(4, len(family)), family).astype(np.uint8)
        codes[start : start + len(copy)] = (copy ^ 1)[::-1] if strand < 0.5 else copy
        lower[start : start + len(copy)] = True
        written += len(copy)


def _write_fasta(path: Path, letters: NDArray[np.uint8]) -> None:
    edges = np.round(np.cumsum((0, *CONTIG_SHARES)) * len(letters)).astype(int)
    with open(path, "wb") as out:
        for number, (start, end) in enumerate(itertools.pairwise(edges.tolist()), 1):
            contig = letters[start:end].tobytes()
            out.write(f">sim{number} simulated\n".encode())
            out.writelines(contig[i : i + LINE_BASES] + b"\n" for i in range(0, len(contig), LINE_BASES))


# Labelled sequences


def _write_labelled(path: Path, rows: int, cumulative: NDArray, elements: list[Element], rng: SequentialRandom) -> None:
    """Write `rows` sequences to the CSV file `path`, in random order. Half have the label 0, half the label 1."""
    windows = background(rows * WINDOW_BASES, cumulative, rng).reshape(rows, WINDOW_BASES)
    labels = np.arange(rows) % 2
    kinds = rng.below(NUM_ELEMENTS, rows)
    positions = rng.uniform(rows)
    for window, label, kind, position in zip(windows, labels, kinds.tolist(), positions.tolist(), strict=True):
        last_start = WINDOW_BASES - elements[kind].max_bases
        elements[kind].plant(window, int(position * last_start), rng, shuffled=not label)
    mutated = rng.uniform(rows, WINDOW_BASES) < 0.02
    windows = np.where(mutated, rng.below(4, rows, WINDOW_BASES), windows).astype(np.uint8)
    with open(path, "w", newline="", encoding="ascii") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["sequence", "label"])
        for i in np.argsort(rng.uniform(rows)):
            writer.writerow([codes_to_bases(windows[i]).decode(), int(labels[i])])
