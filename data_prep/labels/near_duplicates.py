"""Near-duplicate sequences between the tables of the splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.leakage import MAX_HASHES, subsequence_hashes
from dnabert_rm.genome.kmer import base_codes

SUBSEQUENCE_BASES = 30
MIN_SUBSEQUENCE_BASES = 20
"""Shorter subsequences recur by chance."""
SHARED = 0.5
"""A sequence is a near-duplicate if the other table holds at least this share of its subsequences."""


def near_duplicates(letters: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each sequence (n, window) shares half of its subsequences with the sequences `others`, shape (n,).

    Subsequences have 30 bases; in windows below 60 bases, half of the window, but at least 20. A window of less than 20
    bases must be there as a whole. Both strands count. For many sequences, a sample of the subsequences is compared, as
    in data_prep/leakage.py.
    """
    window = letters.shape[1]
    size = min(window, SUBSEQUENCE_BASES, max(MIN_SUBSEQUENCE_BASES, window // 2))
    if not len(letters) or not len(others):
        return np.zeros(len(letters), dtype=bool)
    expected = len(others) * (window - size + 1)
    limit = np.uint64(min(2**64 - 1, 2**64 * MAX_HASHES // max(MAX_HASHES, expected)))

    def hashes_of(row: NDArray[np.uint8]) -> NDArray[np.uint64]:
        hashes = subsequence_hashes(base_codes(row), size)
        return hashes[hashes <= limit]

    known = np.unique(np.concatenate([hashes_of(row) for row in others]))
    result = np.zeros(len(letters), dtype=bool)
    for number, row in enumerate(letters):
        hashes = hashes_of(row)
        if len(hashes) and len(known):
            place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            result[number] = float((known[place] == hashes).mean()) >= SHARED
    return result
