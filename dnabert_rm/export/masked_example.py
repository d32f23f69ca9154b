"""An example for fill-mask in the model card: DNA with one masked token, which fits the tokenizer of the export."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer.vocabulary_files import STOCK_FILE

CONSERVED = "GTGCCAGCAGCCGCGGTAATTCCAGCTCCAATAGCGTATATTAAAGTTGCTGCAGTTAAAAAGCTCGTAGTTGGAT"
"""Conserved part of the small ribosomal RNA (18S) of eukaryotes, so most genomes have it."""
_MASK = kmer.SPECIAL_TOKENS[kmer.MASK_ID]


def masked_example(folder: Path, trained: TokenizerInfo, max_positions: int, overlapping: bool = True) -> str | None:
    """Return DNA with one `[MASK]`, or None if `folder` has no tokenizer.

    The ids of the text are those of `CONSERVED`, or of its start if the model has fewer positions, with the id of the
    middle token replaced by that of `[MASK]`. With overlapping k-mers, the bases on both sides therefore overlap: the
    bases after `[MASK]` begin with the k-mer that follows the masked k-mer. Without `overlapping`, k-mers are adjacent.
    """
    if not (folder / STOCK_FILE).is_file():
        return None
    most = max_positions - 2  # [CLS] and [SEP]
    if trained.k is not None and not overlapping:
        num_tokens = min(len(CONSERVED) // trained.k, most)
        middle = num_tokens // 2
        left, right = CONSERVED[: middle * trained.k], CONSERVED[(middle + 1) * trained.k : num_tokens * trained.k]
    elif trained.k is not None:
        num_tokens = min(len(CONSERVED) - trained.k + 1, most)
        middle = num_tokens // 2
        left, right = CONSERVED[: middle - 1 + trained.k], CONSERVED[middle + 1 : num_tokens + trained.k - 1]
    else:
        # No merge crosses the boundary of two tokens, so each side is encoded alone as in the whole sequence.
        tokens = Tokenizer.from_file(str(folder / STOCK_FILE)).encode(CONSERVED).tokens[1:-1][:most]
        middle = len(tokens) // 2
        left, right = "".join(tokens[:middle]), "".join(tokens[middle + 1 :])
    return left + _MASK + right
