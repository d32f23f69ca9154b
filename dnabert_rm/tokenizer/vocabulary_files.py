"""Files of a k-mer tokenizer: DNABERT's `vocab.txt`, and a `tokenizer.json` for stock transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from dnabert_rm.genome import kmer
from dnabert_rm.genome.vocabulary import STOCK_FILE, VOCAB_FILE, k_of_vocabulary, read_vocabulary
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

STOCK_CLASS = "PreTrainedTokenizerFast"
"""transformers' class that loads any `tokenizer.json`, by the name that versions 4 and 5 know."""
_LETTERS = "ACGTN"


def read_k(path: str | os.PathLike[str]) -> int:
    """Return the k of a `vocab.txt` or `tokenizer.json`. Raise `CheckpointError` if the tokens are not DNABERT's."""
    k = k_of_vocabulary(read_vocabulary(path))
    if k is None:
        raise CheckpointError(
            f"{path}: not a k-mer vocabulary in DNABERT's order (5 special tokens, then {kmer.BASE_ORDER});"
            " choose a model that was pretrained on k-mers"
        )
    return k


def write_tokenizer_files(
    folder: str | os.PathLike[str], k: int, overlapping: bool, prefix: str = ""
) -> tuple[str, str]:
    """Write `vocab.txt`, identical to DNABERT's, and `tokenizer.json` to `folder`. Return their paths."""
    vocab = Path(folder, prefix + VOCAB_FILE)
    stock = Path(folder, prefix + STOCK_FILE)
    vocab.write_bytes(kmer.vocabulary_text(k).encode())
    stock.write_text(stock_tokenizer(k, overlapping).to_str(pretty=True) + "\n", encoding="utf-8")
    return str(vocab), str(stock)


def name_stock_class(config_file: Path) -> None:
    """Write the name of a transformers class to `tokenizer_config.json`.

    With this name, stock transformers can load the folder without `KmerTokenizer`. transformers 4 looks up the class by
    its name and has no other way to load `tokenizer.json`.
    """
    content = read_json(config_file, error=CheckpointError)
    content.pop("backend", None)
    content |= {"tokenizer_class": STOCK_CLASS, "clean_up_tokenization_spaces": False}
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stock_tokenizer(k: int, overlapping: bool = True) -> Tokenizer:
    """Return a tokenizer from the `tokenizers` library that gives the same ids as `KmerTokenizer`.

    The library splits text into tokens that never overlap. So for overlapping k-mers, a normaliser first writes out
    every k-mer (`_write_out_kmers`). The library then splits the written-out text into words of k letters.
    """
    steps = [normalizers.Replace(Regex(r"[^ACGTacgt \t\n\r\x0b\x0c]"), "N"), *_upper_case()]
    if overlapping:
        steps += _write_out_kmers(k)
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(kmer.vocabulary(k))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{_LETTERS}]{{{k}}}"), "removed", invert=True)
    add_special_tokens(tokenizer)
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer) -> None:
    """Make `tokenizer` put `[CLS]` and `[SEP]` around each text, and recognize special tokens inside a text."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in kmer.SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", kmer.CLS_ID), ("[SEP]", kmer.SEP_ID)],
    )


def _upper_case() -> list[normalizers.Normalizer]:
    return [normalizers.Replace(letter.lower(), letter) for letter in _LETTERS]


def _write_out_kmers(k: int) -> list[normalizers.Normalizer]:
    """Return normaliser steps that turn "ACGT" into "AC|CG|GT|T" (k = 2): one word per base, separated by "|".

    The first step makes words of one letter, "A|C|G|T". It is followed by k - 1 rounds. In round i, each word of i
    letters is extended by the last letter of the next word, if the next word also has i letters. Words near the end of
    the sequence therefore stay shorter than k letters. Only words of k letters become tokens.

    A round has one step for each letter of the alphabet. A step appends its letter in lower case, so that no later step
    of the same round matches the appended letter. At the end of the round, all letters are converted to upper case.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(rf"(?<=[{_LETTERS}])(?=[{_LETTERS}])"), "|")]
    for width in range(1, k):
        end_of_record = rf"(?<=[{_LETTERS}]{{{width}}})"
        for letter in _LETTERS:
            next_ends_in_letter = rf"(?=\|[{_LETTERS}]{{{width - 1}}}{letter})"
            steps.append(normalizers.Replace(Regex(end_of_record + next_ends_in_letter), letter.lower()))
        steps += _upper_case()
    return steps
