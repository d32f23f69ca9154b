"""Exact counts of all k-mers of 1 to `max_width` bases, in one pass and bounded memory.

Only the widest k-mers are counted base by base. A narrower k-mer either follows an unambiguous base or begins a run of
unambiguous bases. If it follows a base, it is the end of exactly one k-mer that is one base wider. So for a k-mer x of
w bases,

    count_w(x) = sum over bases a of count_{w+1}(a x) + number of runs that begin with x

Only the given strand is counted. A k-mer with base codes c_0 … c_{w-1} has the number sum_j c_j * 4^(w-1-j), in the
base order of `genome/kmer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import AMBIGUOUS, NUM_SPECIAL, encode_codes
from dnabert_rm.utils.errors import DataError

MAX_WIDTH = 12
"""Largest width. A table of 12-mers has 16.8 million counts, 128 MiB."""

CHUNK_BASES = 1 << 22

KmerCounts = dict[int, NDArray[np.int64]]
"""Width w → counts of all w-mers, (4^w,) int64."""


def count_kmers(
    sequences: Iterable[NDArray[np.uint8]], max_width: int = MAX_WIDTH, chunk_bases: int = CHUNK_BASES
) -> KmerCounts:
    """Count the k-mers of every width from 1 to `max_width`.

    No k-mer crosses the border of two arrays or covers an ambiguous base.

    Args:
        sequences: Base codes (N,) uint8, one array per contig or segment; see `kmer.base_codes`.
        max_width: Bases of the widest k-mers, 1 … 12.
        chunk_bases: Bases to count at a time. Each needs about 20 bytes of memory, in addition to the tables.
    """
    assert 1 <= max_width <= MAX_WIDTH, max_width
    widest = np.zeros(NUM_SPECIAL + 4**max_width, dtype=np.int64)
    starts: KmerCounts = {width: np.zeros(4**width, dtype=np.int64) for width in range(1, max_width)}
    for chunk in _overlapping_chunks(sequences, max_width, chunk_bases):
        ambiguous = chunk > 3
        codes = np.where(ambiguous, np.uint8(0), chunk)
        ids = encode_codes(codes[1:], max_width)
        np.add.at(widest, ids[~_any_of(ambiguous[1:], max_width)].astype(np.intp), 1)
        runs = np.flatnonzero(ambiguous[: len(ids)] & ~ambiguous[1 : len(ids) + 1]) + 1
        _count_beginnings(starts, codes, ambiguous, runs)
    counts = {max_width: widest[NUM_SPECIAL:]}
    for width in range(max_width - 1, 0, -1):
        counts[width] = counts[width + 1].reshape(4, -1).sum(axis=0) + starts[width]
    return counts


def _overlapping_chunks(
    sequences: Iterable[NDArray[np.uint8]], width: int, chunk_bases: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the sequences, joined by an ambiguous base, in chunks that overlap by `width` bases.

    A chunk's first base only shows whether the second one begins a run. Apart from the k-mers at these first bases,
    each k-mer of `width` bases is in exactly one chunk.
    """
    border = np.full(1, AMBIGUOUS, dtype=np.uint8)
    pieces, size = [border], 1
    for sequence in sequences:
        for begin in range(0, len(sequence), chunk_bases):
            pieces.append(sequence[begin : begin + chunk_bases])
            size += len(pieces[-1])
            if size >= chunk_bases + width:
                chunk = np.concatenate(pieces)
                yield chunk
                pieces, size = [chunk[-width:]], width
        pieces.append(border)
        size += 1
    yield np.concatenate([*pieces, np.full(width, AMBIGUOUS, dtype=np.uint8)])


def _any_of(flags: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return whether any of the `width` flags from each position on is set, (N,) → (N - width + 1,)."""
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        flags = flags[: max(0, len(flags) - step)] | flags[step:]
        covered += step
    return flags


def _count_beginnings(
    starts: KmerCounts, codes: NDArray[np.uint8], ambiguous: NDArray[np.bool_], runs: NDArray[np.intp]
) -> None:
    """Add the first k-mer of every run, at positions `runs`, to the counts of each width."""
    numbers = np.zeros(len(runs), dtype=np.intp)
    for width, table in starts.items():
        inside = ~ambiguous[runs + width - 1]
        runs, numbers = runs[inside], numbers[inside] * 4 + codes[runs[inside] + width - 1]
        np.add.at(table, numbers, 1)


def composition_probabilities(counts: KmerCounts) -> NDArray[np.float64]:
    """Return the frequencies of A, T, C and G, (4,), add-one smoothed."""
    smoothed = counts[1] + 1.0
    return smoothed / smoothed.sum()


def kmer_cross_entropy(training: KmerCounts, held_out: KmerCounts, k: int) -> float:
    """Return the cross-entropy of held-out k-mers under the frequencies of training k-mers, in nats per k-mer.

    The k-mers overlap, and the frequencies are add-one smoothed. A masked language model that ignores the neighbours of
    a `[MASK]` token can't do better.

    Raises `DataError` without held-out k-mers.
    """
    num_held_out = held_out[k].sum()
    if num_held_out == 0:
        raise DataError(f"no {k} unambiguous bases in a row are held out; hold out longer sequences")
    smoothed = training[k] + 1.0
    return float(-(held_out[k] @ np.log(smoothed / smoothed.sum())) / num_held_out)
