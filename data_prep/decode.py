"""Decode segments of k-mer or BPE ids to bases, for the commands `inspect`, `stats` and `verify --leakage`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.genome.bpe_model import load_model
from dnabert_rm.genome.kmer import AMBIGUOUS, NUM_SPECIAL, UNK_ID, base_codes, kmer_codes

Decoder = Callable[[NDArray], NDArray[np.uint8]]
"""Function from token ids (T,) to the codes of the N bases that the tokens cover, (N,).

The codes are A = 0, T = 1, C = 2, G = 3. A base covered only by [UNK] has the code `AMBIGUOUS`.
"""


def make_decoder(tokenizer: TokenizerInfo, folder: Path) -> Decoder:
    """Return a function that converts the token ids of a segment, or of a part of a segment, to base codes.

    The codes are A = 0, T = 1, C = 2, G = 3, and `AMBIGUOUS` for unknown bases. A BPE model is read from `folder`.
    """
    if tokenizer.model is not None:
        model = load_model(folder / tokenizer.model)
        return lambda ids: base_codes(model.decode(ids.tolist()))
    assert tokenizer.k is not None
    k = tokenizer.k
    return lambda ids: kmer_base_codes(ids, k)


def kmer_base_codes(ids: NDArray, k: int) -> NDArray[np.uint8]:
    """Return the base codes of T overlapping k-mer ids, shape (T,) → (T + k - 1,).

    The codes are A = 0, T = 1, C = 2, G = 3. A base covered only by [UNK] has the code `AMBIGUOUS`.
    """
    if not len(ids):
        return np.empty(0, np.uint8)
    codes = np.full(len(ids) + k - 1, AMBIGUOUS, dtype=np.uint8)
    if ids.min() >= NUM_SPECIAL:
        codes[: k - 1] = kmer_codes(ids[:1], k)[0, : k - 1]
        codes[k - 1 :] = (ids - ids.dtype.type(NUM_SPECIAL)) & 3
        return codes
    known = np.flatnonzero(ids != UNK_ID)
    codes[known[:, None] + np.arange(k)] = kmer_codes(ids[known], k)
    return codes
