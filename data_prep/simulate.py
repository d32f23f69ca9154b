"""A simulated genome with structure worth learning, and labelled sequences that depend on it.

The genome is a third-order Markov background with repeat families, N runs, lower-case stretches
and planted elements: a few motifs in a fixed order at nearly fixed distances. A labelled sequence
comes from a fresh draw; label 1 holds an element, label 0 the same letters with every motif's
letters shuffled, so that base composition says nothing. Everything is drawn with `draws`.
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
NUM_FAMILIES, REPEAT_FRACTION = 10, 0.25
NUM_ELEMENTS, MOTIFS_PER_ELEMENT, MOTIF_BASES, ELEMENT_EVERY_BASES = 2, 3, 10, 160
WINDOW_BASES, EVAL_ROWS, LINE_BASES = 120, 1000, 60
_LANE_BASES = 2000


class SequentialRandom:
    """Numbers drawn one call after the other from one seed and purpose."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._key, self._calls = random.key(seed, f"simulate {purpose}"), 0

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Uniform in [0, 1), of the given shape."""
        self._calls += 1
        key = random.fold(self._key, self._calls)
        return random.uniform(random.fold(key, np.arange(int(np.prod(shape))))).reshape(shape)

    def below(self, bound: int, *shape: int) -> NDArray[np.int64]:
        """Uniform integers 0 … bound - 1, of the given shape."""
        return (self.uniform(*shape) * bound).astype(np.int64)


@dataclass(frozen=True)
class Element:
    """Motifs (MOTIFS_PER_ELEMENT, MOTIF_BASES) as base codes, and the bases between them."""

    motifs: NDArray[np.uint8]
    spacers: tuple[int, ...]

    def place(self, codes: NDArray[np.uint8], start: int, dice: SequentialRandom, shuffled: bool = False) -> None:
        """Write one copy, slightly mutated and with jittered spacers, into `codes` from `start` on."""
        jitter = dice.below(3, len(self.motifs)) - 1
        changed = dice.uniform(*self.motifs.shape) < 0.05
        letters = np.where(changed, dice.below(4, *self.motifs.shape), self.motifs).astype(np.uint8)
        if shuffled:
            letters = np.take_along_axis(letters, np.argsort(dice.uniform(*letters.shape), axis=1), axis=1)
        for motif, spacer, shift in zip(letters, self.spacers, jitter.tolist(), strict=True):
            codes[start : start + MOTIF_BASES] = motif
            start += MOTIF_BASES + spacer + shift

    @property
    def length(self) -> int:
        """Bases of the longest copy."""
        return len(self.motifs) * (MOTIF_BASES + 1) + sum(self.spacers)


def run(folder: Path, bases: int, rows: int, seed: int) -> int:
    """`simulate`: write genome.fa and train.csv, dev.csv, test.csv into `folder`."""
    if bases < 20_000:
        raise ConfigError(f"--bases {bases}: must be at least 20000")
    if rows < 2:
        raise ConfigError(f"--rows {rows}: must be at least 2")
    world = SequentialRandom(seed, "world")
    chances = np.cumsum(_chances(world), axis=1)
    elements = [_element(world) for _ in range(NUM_ELEMENTS)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_fasta(folder / "genome.fa", _genome(bases, chances, elements, SequentialRandom(seed, "genome")))
        for name, count in (("train", rows), ("dev", EVAL_ROWS), ("test", EVAL_ROWS)):
            _write_labelled(folder / f"{name}.csv", count, chances, elements, SequentialRandom(seed, name))
    except OSError as error:
        raise DataError(f"--out {folder}: cannot be written ({error.strerror})") from None
    print(
        f"{folder}: genome.fa ({bases:,} bases), train.csv ({rows:,} rows), dev.csv and test.csv ({EVAL_ROWS:,} each)"
    )
    return 0


def _chances(dice: SequentialRandom) -> NDArray[np.float64]:
    """Chance of the next base after each three bases, shape (64, 4)."""
    weights = 0.1 + dice.uniform(64, 4) ** 2
    return weights / weights.sum(axis=1, keepdims=True)


def _element(dice: SequentialRandom) -> Element:
    motifs = dice.below(4, MOTIFS_PER_ELEMENT, MOTIF_BASES).astype(np.uint8)
    return Element(motifs, tuple((6 + dice.below(10, MOTIFS_PER_ELEMENT)).tolist()))


def background(size: int, cumulative: NDArray[np.float64], dice: SequentialRandom) -> NDArray[np.uint8]:
    """A third-order Markov sequence, shape (size,), made in lanes side by side and joined."""
    lanes = -(-size // _LANE_BASES)
    chance = dice.uniform(_LANE_BASES, lanes)
    context = dice.below(64, lanes)
    codes = np.empty((_LANE_BASES, lanes), np.uint8)
    for i in range(_LANE_BASES):
        codes[i] = (chance[i][:, None] >= cumulative[context, :3]).sum(axis=1)
        context = (context * 4 + codes[i]) % 64
    return codes.T.ravel()[:size]


def _genome(size: int, cumulative: NDArray, elements: list[Element], dice: SequentialRandom) -> NDArray[np.uint8]:
    """The letters of the whole genome, shape (size,): background, repeats, elements, lower case, N."""
    codes = background(size, cumulative, dice)
    lower = np.zeros(size, dtype=bool)
    _plant_repeats(codes, lower, dice)
    count = size // ELEMENT_EVERY_BASES
    slots = ELEMENT_EVERY_BASES * np.arange(count) + dice.below(ELEMENT_EVERY_BASES // 2, count)
    for start, kind in zip(slots.tolist(), dice.below(NUM_ELEMENTS, count).tolist(), strict=True):
        elements[kind].place(codes, min(start, size - elements[kind].length), dice)
    letters = np.frombuffer(codes_to_bases(codes), np.uint8) | np.where(lower, np.uint8(32), np.uint8(0))
    runs = max(3, size // 500_000)
    for start, length in zip(dice.below(size, runs).tolist(), (1 + dice.below(2000, runs)).tolist(), strict=True):
        letters[start : start + length] = ord("N")
    return letters


def _plant_repeats(codes: NDArray[np.uint8], lower: NDArray[np.bool_], dice: SequentialRandom) -> None:
    """Overwrite about `REPEAT_FRACTION` with copies of family consensus, 5 to 20 % changed, on both strands."""
    families = [dice.below(4, int(length)).astype(np.uint8) for length in 200 + dice.below(800, NUM_FAMILIES)]
    done, size = 0, len(codes)
    while done < REPEAT_FRACTION * size:
        family = families[int(dice.below(NUM_FAMILIES, 1)[0])]
        start = int(dice.below(size - len(family), 1)[0])
        strand, divergence = dice.uniform(2)
        changed = dice.uniform(len(family)) < 0.05 + 0.15 * divergence
        copy = np.where(changed, dice.below(4, len(family)), family).astype(np.uint8)
        codes[start : start + len(copy)] = (copy ^ 1)[::-1] if strand < 0.5 else copy
        lower[start : start + len(copy)] = True
        done += len(copy)


def _write_fasta(path: Path, letters: NDArray[np.uint8]) -> None:
    edges = np.round(np.cumsum((0, *CONTIG_SHARES)) * len(letters)).astype(int)
    with open(path, "wb") as out:
        for number, (start, end) in enumerate(itertools.pairwise(edges.tolist()), 1):
            contig = letters[start:end].tobytes()
            out.write(f">sim{number} simulated\n".encode())
            out.writelines(contig[i : i + LINE_BASES] + b"\n" for i in range(0, len(contig), LINE_BASES))


def _write_labelled(
    path: Path, rows: int, cumulative: NDArray, elements: list[Element], dice: SequentialRandom
) -> None:
    """Write `rows` windows, half of each label, in a drawn order."""
    windows = background(rows * WINDOW_BASES, cumulative, dice).reshape(rows, WINDOW_BASES)
    labels = np.arange(rows) % 2
    kinds, coordinates = dice.below(NUM_ELEMENTS, rows), dice.uniform(rows)
    for window, label, kind, place in zip(windows, labels, kinds.tolist(), coordinates.tolist(), strict=True):
        room = WINDOW_BASES - elements[kind].length
        elements[kind].place(window, int(place * room), dice, shuffled=not label)
    changed = dice.uniform(rows, WINDOW_BASES) < 0.02
    windows = np.where(changed, dice.below(4, rows, WINDOW_BASES), windows).astype(np.uint8)
    with open(path, "w", newline="", encoding="ascii") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["sequence", "label"])
        for i in np.argsort(dice.uniform(rows)):
            writer.writerow([codes_to_bases(windows[i]).decode(), int(labels[i])])
