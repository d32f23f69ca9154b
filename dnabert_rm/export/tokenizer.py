"""Write the tokenizer of an export, and check that it reproduces the token ids of the training data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dnabert_rm.config import RunConfig
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.genome import kmer
from dnabert_rm.genome.bpe_model import MODEL_NAME, load_model
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.bpe_tokenizer import write_bpe_files
from dnabert_rm.tokenizer.vocabulary_files import STOCK_FILE
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json, sha256_of_file

_TEST_BASES = 5000
_TEST_REPEATS = 200
"""Number of tandem repeats in the test sequence of a BPE tokenizer. Repeats often cause ties between BPE merges."""


def write_tokenizer(checkpoint: Path, trained: TokenizerInfo, config: RunConfig, folder: Path) -> None:
    """Write the files of the tokenizer to `folder`.

    A BPE model is read from the checkpoint. Checkpoints of earlier releases have no BPE model, so the data folder is
    searched next. If no BPE model is found, print a warning on standard error, and write no tokenizer.
    """
    if trained.kind == "kmer":
        tokenizer = KmerTokenizer(
            k=trained.k, overlapping=config.data.overlap, model_max_length=config.model.max_positions
        )
        tokenizer.save_pretrained(folder)
        return
    bpe_model = _find_bpe_model([checkpoint, *map(Path, config.data.path)], trained)
    if bpe_model is None:
        print(
            f"{checkpoint}: the BPE model {trained.model} is neither in this checkpoint nor in the data folder; "
            "the export has no tokenizer",
            file=sys.stderr,
        )
        return
    write_bpe_files(folder, bpe_model, config.model.max_positions)


def _find_bpe_model(folders: Sequence[Path], trained: TokenizerInfo) -> Path | None:
    """Return the path of the SentencePiece model that tokenized the training data, or None if no folder contains it."""
    for folder in folders:
        path = folder / (trained.model or MODEL_NAME)
        if path.is_file() and sha256_of_file(path) == trained.model_sha256:
            return path
    return None


def check_tokenizer(folder: Path, trained: TokenizerInfo, overlapping: bool = True) -> None:
    """Raise `CheckpointError` if the tokenizer in `folder` differs from the tokenizer of the training data.

    The vocabularies and the token ids of a test sequence are compared. For k-mers, the sequence has upper-case,
    lower-case and ambiguous bases, and both `KmerTokenizer` and the stock tokenizer are checked. For BPE, the sequence
    has tandem repeats. `overlapping` is whether the training data had overlapping k-mers. Skip the check if `folder`
    has no tokenizer.
    """
    if not (folder / STOCK_FILE).is_file():
        return
    stock = Tokenizer.from_file(str(folder / STOCK_FILE))
    size = read_json(folder / "config.json", error=CheckpointError)["vocab_size"]
    if trained.kind == "bpe":
        model = load_model(folder / MODEL_NAME)
        vocabulary = [model.id_to_piece(i) for i in range(model.vocab_size())]
        sequence = _repetitive_sequence()
        ids = model.encode(sequence)
    else:
        assert trained.k is not None
        vocabulary = kmer.vocabulary(trained.k)
        sequence = _mixed_sequence()
        ids = kmer.encode(sequence, trained.k)[:: 1 if overlapping else trained.k].tolist()
        own = KmerTokenizer.from_pretrained(folder)
        _check_vocabulary("vocab.txt", own.get_vocab(), vocabulary, size)
        _check_ids("KmerTokenizer", own(sequence, verbose=False)["input_ids"], ids)
    _check_vocabulary(STOCK_FILE, stock.get_vocab(), vocabulary, size)
    _check_ids(STOCK_FILE, stock.encode(sequence).ids, ids)


def _check_ids(name: str, found: list[int], trained: list[int]) -> None:
    if found != [kmer.CLS_ID, *trained, kmer.SEP_ID]:
        raise CheckpointError(
            f"export: the token ids of {name} differ from those in the training data; report this error"
        )


def _check_vocabulary(name: str, found: Mapping[str, int], trained: Sequence[str], model_size: int) -> None:
    """Raise `CheckpointError` if an exported vocabulary differs from the vocabulary of the training data.

    `found` maps exported tokens to ids. `trained` lists the training tokens by id. Both must have `model_size` tokens,
    the vocabulary size of the model. `name` is the exported file's name for the error message.
    """
    if len(found) != len(trained) or len(found) != model_size:
        raise CheckpointError(
            f"export: vocabulary sizes differ: {name} {len(found)}, training data {len(trained)}, "
            f"model {model_size}; report this error"
        )
    for index, token in enumerate(trained):
        if found.get(token) != index:
            raise CheckpointError(
                f"export: token {token} has id {found.get(token)} in {name}, but id {index} in the training data;"
                " report this error"
            )


def _mixed_sequence() -> str:
    """Return a sequence of random upper-case and lower-case bases, with a few N and R."""
    return "".join(_choose("ACGTacgt" * 8 + "NR"))


def _repetitive_sequence() -> str:
    """Return random bases followed by tandem repeats of 1 to 6 random bases, such as ACGACGACG."""
    bases = "".join(_choose("ACGT"))
    units = (bases[i : i + 1 + i % 6] for i in range(_TEST_REPEATS))
    return bases + "".join(unit * (2 + i % 15) for i, unit in enumerate(units))


def _choose(letters: str) -> NDArray:
    """Return `_TEST_BASES` pseudorandom elements of `letters`, the same in every call."""
    bits = random.fold(random.key(0, "trial"), np.arange(_TEST_BASES))
    return np.array(list(letters))[random.below(bits, len(letters))]
