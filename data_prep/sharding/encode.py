"""Encode the letters of a segment as k-mers, as k-mers with [UNK], or as BPE tokens of one or both strands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.options import BuildOptions
from dnabert_rm.genome.bpe_model import load_model
from dnabert_rm.genome.contigs import pure_codes
from dnabert_rm.genome.kmer import codes_to_bases, encode, encode_codes, id_dtype, vocab_size

Encoder = Callable[[Sequence[NDArray[np.uint8]]], Iterator[NDArray]]
"""Function from the letters of segments, (N,) each, to the ids of each segment, (T,) each.

With two strands, a segment has two arrays of ids: those of the forward strand, then those of the reverse strand.
"""
_CHUNK_TOKENS = 1 << 15
_U_AS_T = bytes.maketrans(b"Uu", b"Tt")


def make_encoder(options: BuildOptions, bpe_model: str | None) -> Encoder:
    """Return a function that converts the letters of segments to token ids.

    `bpe_model` is the path of a SentencePiece model, or None for k-mers.
    """
    k = options.k
    if k is None:
        assert bpe_model is not None
        return _bpe_encoder(bpe_model, both_strands=options.strands == 2)
    if options.unk_bases:
        # Only with this option can a segment hold letters that are not bases.
        translation = _U_AS_T if options.rna else None
        return lambda segments: (encode(letters.tobytes().translate(translation), k) for letters in segments)
    return lambda segments: _encode_together(segments, k)


def _encode_together(segments: Sequence[NDArray[np.uint8]], k: int) -> Iterator[NDArray]:
    """Yield the ids of each segment. All are encoded in one pass, because a call for each would take most of the time.

    The letters of the segments follow each other. The k-mers across their borders are left out.
    """
    ids = encode_in_chunks(np.concatenate(segments) if len(segments) > 1 else segments[0], k)
    start = 0
    for letters in segments:
        yield ids[start : start + len(letters) - k + 1]
        start += len(letters)


def encode_in_chunks(letters: NDArray[np.uint8], k: int) -> NDArray:
    """Return the overlapping k-mer ids of letters without ambiguous bases, (N,) → (N - k + 1,).

    The letters are encoded in chunks. The arrays of a chunk fit in a core's cache, and the allocator reuses their
    memory. This is three times as fast as encoding all letters at once, in newly allocated large arrays.
    """
    num_tokens = len(letters) - k + 1
    ids = np.empty(num_tokens, dtype=id_dtype(vocab_size(k)))
    for start in range(0, num_tokens, _CHUNK_TOKENS):
        chunk = letters[start : start + _CHUNK_TOKENS + k - 1]
        ids[start : start + _CHUNK_TOKENS] = encode_codes(pure_codes(chunk), k)
    return ids


def _bpe_encoder(path: str, both_strands: bool) -> Encoder:
    model = load_model(path)
    dtype = id_dtype(model.vocab_size())

    def encode_bpe(segments: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray]:
        for letters in segments:
            codes = pure_codes(letters)
            for bases in [codes, (codes ^ np.uint8(1))[::-1]] if both_strands else [codes]:
                yield np.array(model.encode(codes_to_bases(bases).decode()), dtype=dtype)

    return encode_bpe
