"""From a segment's letters to stored ids: k-mers, k-mers with [UNK], or BPE on one or both strands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_prep.bpe import load_model
from data_prep.build.options import BuildOptions
from dnabert_rm.genome.contigs import pure_codes
from dnabert_rm.genome.kmer import codes_to_bases, encode, encode_codes, id_dtype, vocab_size

Encode = Callable[[NDArray[np.uint8]], Iterator[tuple[str | None, NDArray]]]
"""Letters (N,) of a segment → a strand ("+", "-", or None where only the forward one is stored) and ids (T,)."""
_PIECE_TOKENS = 1 << 15
_U_AS_T = bytes.maketrans(b"Uu", b"Tt")


def make_encoder(options: BuildOptions, bpe_model: str | None) -> Encode:
    """The encoder that the options ask for; `bpe_model` is the path of a SentencePiece model."""
    k = options.k
    if k is None:
        assert bpe_model is not None
        return _bpe_encoder(bpe_model, both_strands=options.strands == 2)
    if options.unk_bases:
        # Only here may a segment hold letters that are no bases.
        letters_meant = _U_AS_T if options.rna else None
        return lambda letters: iter([(None, encode(letters.tobytes().translate(letters_meant), k))])
    return lambda letters: iter([(None, encode_in_pieces(letters, k))])


def encode_in_pieces(letters: NDArray[np.uint8], k: int) -> NDArray:
    """Overlapping ids of letters that are all bases, (N,) → (N - k + 1,).

    A piece at a time: all that one needs stays in a core's cache, and its arrays are small enough
    that the allocator doesn't fetch fresh pages from the system each time (a factor of three).
    """
    num_tokens = len(letters) - k + 1
    ids = np.empty(num_tokens, dtype=id_dtype(vocab_size(k)))
    for start in range(0, num_tokens, _PIECE_TOKENS):
        piece = letters[start : start + _PIECE_TOKENS + k - 1]
        ids[start : start + _PIECE_TOKENS] = encode_codes(pure_codes(piece), k)
    return ids


def _bpe_encoder(path: str, both_strands: bool) -> Encode:
    model = load_model(path)
    dtype = id_dtype(model.vocab_size())

    def encode_bpe(letters: NDArray[np.uint8]) -> Iterator[tuple[str | None, NDArray]]:
        codes = pure_codes(letters)
        strands = {"+": codes, "-": (codes ^ np.uint8(1))[::-1]} if both_strands else {None: codes}
        for strand, bases in strands.items():
            yield strand, np.array(model.encode(codes_to_bases(bases).decode()), dtype=dtype)

    return encode_bpe
