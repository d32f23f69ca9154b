"""Read the vocabulary of a model folder from `vocab.txt` or `tokenizer.json`. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

VOCAB_FILE = "vocab.txt"
STOCK_FILE = "tokenizer.json"
"""The `tokenizers` library's file. transformers 5 writes only this file for most tokenizers."""
_ADVICE = "restore the file that was used for pretraining"


def vocabulary_files(folder: Path) -> list[Path]:
    """Return the paths of `vocab.txt` and `tokenizer.json` in `folder`. Omit files that do not exist."""
    return [path for name in (VOCAB_FILE, STOCK_FILE) if (path := folder / name).is_file()]


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Return the tokens of a `vocab.txt` or `tokenizer.json` in order of their ids.

    Tokens that a user has added to the vocabulary are left out. Raises `CheckpointError` if the file can't be read, or
    if the ids of a `tokenizer.json` are not 0, 1, 2 ….
    """
    path = Path(path)
    if path.suffix == ".json":
        return _stock_vocabulary(path)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a readable vocabulary ({error}); pass a text file with one token per line"
        ) from None


def _stock_vocabulary(path: Path) -> list[str]:
    content = read_json(path, error=CheckpointError, advice=_ADVICE)
    try:
        ids = _ids_of_model(content["model"]["vocab"])
        # Special tokens may be missing in the model's own vocabulary.
        added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or ()}
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: holds no vocabulary ({type(error).__name__}: {error}); {_ADVICE}") from None
    last = max(ids.values(), default=-1)
    ids |= {token: index for token, index in added.items() if index <= last}
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise CheckpointError(f"{path}: its ids are not 0 to {len(tokens) - 1}, each once; {_ADVICE}")
    return tokens


def _ids_of_model(vocab: Any) -> dict[str, int]:
    """Return the id of each token from the entry `model.vocab` of a `tokenizer.json`.

    Unigram models store a list of (token, score), where the index is the id. Other models map tokens to ids.
    """
    if isinstance(vocab, list):
        return {str(entry[0]): index for index, entry in enumerate(vocab)}
    return {str(token): int(index) for token, index in vocab.items()}


def k_of_vocabulary(tokens: list[str]) -> int | None:
    """Return k if `tokens` are exactly DNABERT's tokens for k-mers, else None."""
    k = len(tokens[-1]) if tokens else 0
    return k if kmer.MIN_K <= k <= kmer.MAX_K and tokens == kmer.vocabulary(k) else None
