"""BPE tokenizer of DNA: a `tokenizer.json` for stock transformers, with the same ids as a SentencePiece model.

How text is encoded:
- Bases in either case become the same tokens as with SentencePiece.
- Adjacent letters other than A, C, G, T become one `[UNK]`.
- White space separates sequences, and no token crosses it. A special token in the text is encoded as that token.

SentencePiece merges the pair whose merged token has the lowest id. If several pairs give this token, it merges the
leftmost. The `tokenizers` library instead merges the pair that comes first in the list of merges in `tokenizer.json`.
Therefore this list holds all pairs of tokens whose merged form is a token, ordered by the id of the merged token.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from dnabert_rm.genome import kmer
from dnabert_rm.genome.bpe_model import MODEL_NAME, load_model
from dnabert_rm.tokenizer.vocabulary_files import STOCK_CLASS, STOCK_FILE, VOCAB_FILE, add_special_tokens
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

_CONFIG_FILE = "tokenizer_config.json"


def stock_bpe_tokenizer(model: Any) -> Tokenizer:
    """Return a tokenizer from the `tokenizers` library with the same ids as a SentencePiece model."""
    tokens = [model.id_to_piece(i) for i in range(model.vocab_size())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens[kmer.NUM_SPECIAL :]
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="[UNK]", fuse_unk=True))
    upper_case = [normalizers.Replace(base.lower(), base) for base in kmer.BASE_ORDER]
    other_letters = normalizers.Replace(Regex(r"[^ACGT \t\n\r\x0b\x0c]"), "N")
    tokenizer.normalizer = normalizers.Sequence([*upper_case, other_letters])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    add_special_tokens(tokenizer)
    return tokenizer


def write_bpe_files(folder: Path, sentencepiece_model: Path, model_max_length: int) -> None:
    """Write a BPE tokenizer into `folder`: `tokenizer.json`, `tokenizer_config.json` and the SentencePiece model."""
    stock = stock_bpe_tokenizer(load_model(sentencepiece_model))
    content = json.loads(stock.to_str())
    # Releases before tokenizers 0.20 read only this form of merges; later releases read both.
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / STOCK_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    pad, unk, cls, sep, mask = kmer.SPECIAL_TOKENS
    settings = {
        "tokenizer_class": STOCK_CLASS,
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "pad_token": pad,
        "unk_token": unk,
        "cls_token": cls,
        "sep_token": sep,
        "mask_token": mask,
    }
    (folder / _CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(sentencepiece_model, folder / MODEL_NAME)


def is_bpe(folder: Path) -> bool:
    """Return whether a folder has a BPE tokenizer, and no k-mer vocabulary."""
    if (folder / VOCAB_FILE).is_file() or not (folder / STOCK_FILE).is_file():
        return False
    model = read_json(folder / STOCK_FILE, error=CheckpointError).get("model")
    return isinstance(model, dict) and model.get("type") == "BPE"


class BpeTokenizer:
    """The BPE tokenizer in the folder of an export or a fine-tuned model.

    Raises `CheckpointError` if the folder has no BPE `tokenizer.json`.
    """

    cls_token_id = kmer.CLS_ID
    sep_token_id = kmer.SEP_ID

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / STOCK_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain exceptions
            raise CheckpointError(f"{path}: not a tokenizer ({error}); export the model again") from None
        if not isinstance(self._tokenizer.model, BPE):
            raise CheckpointError(f"{path}: not a BPE tokenizer; choose a model pretrained on BPE tokens")
        config = read_json(folder / _CONFIG_FILE, error=CheckpointError)
        self.model_max_length = int(config.get("model_max_length", 512))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size()

    def token_ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text without `[CLS]` and `[SEP]`: one array of shape (tokens,) per text."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(text.ids, dtype=np.int32) for text in encoded]

    def token_ranges(self, text: str) -> NDArray[np.int64]:
        """Return the half-open range of letters that each of T tokens covers, shape (T, 2)."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Copy the tokenizer's files to `folder`, with the current `model_max_length`."""
        for name in (STOCK_FILE, MODEL_NAME):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, Path(folder, name))
        content = read_json(self.folder / _CONFIG_FILE, error=CheckpointError)
        content["model_max_length"] = self.model_max_length
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        Path(folder, _CONFIG_FILE).write_text(text, encoding="utf-8")
