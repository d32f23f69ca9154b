"""SentencePiece models of DNA: file name, loading, and the number of bases of each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.kmer import NUM_SPECIAL, SPECIAL_TOKENS
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file

MODEL_NAME = "tokenizer.model"
"""Name of the model's file in a data folder, a checkpoint and an export."""


def load_model(path: str | Path) -> Any:
    """Load a SentencePiece model.

    Raises `DataError` if the file is not a SentencePiece model, if the model's first tokens are not the special
    tokens, or if it lacks one of the bases A, C, G and T.
    """
    import sentencepiece

    check_readable_file(path, "a SentencePiece model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
    except RuntimeError:
        raise DataError(f"{path}: not a SentencePiece model; make one with `python -m data_prep train-bpe`") from None
    pieces = tuple(model.id_to_piece(i) for i in range(min(NUM_SPECIAL, model.vocab_size())))
    if pieces != SPECIAL_TOKENS:
        raise DataError(f"{path}: its first tokens must be {' '.join(SPECIAL_TOKENS)}; make it with train-bpe")
    if missing := missing_bases(model):
        raise DataError(f"{path}: has no token {missing}, which would be [UNK]; train it on more bases")
    return model


def missing_bases(model: Any) -> str:
    """Return the bases that are not tokens of a SentencePiece model, such as "C, G"."""
    return ", ".join(base for base in "ACGT" if model.id_to_piece(model.piece_to_id(base)) != base)


def piece_bases(model: Any) -> NDArray[np.int64]:
    """Return the number of bases in each token of a SentencePiece model, shape (tokens,).

    Special tokens have 0 bases.
    """
    sizes = [0 if i < NUM_SPECIAL else len(model.id_to_piece(i)) for i in range(model.vocab_size())]
    return np.array(sizes, dtype=np.int64)
