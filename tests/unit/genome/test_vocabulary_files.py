"""Reading the vocabulary of a model folder from vocab.txt or tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece

from dnabert_rm.genome import kmer
from dnabert_rm.genome.vocabulary import k_of_vocabulary, read_vocabulary, vocabulary_files
from dnabert_rm.utils.errors import CheckpointError

IDS = {token: index for index, token in enumerate(kmer.vocabulary(3))}


@pytest.mark.parametrize("model", [WordLevel, WordPiece])
def test_a_tokenizer_json_has_the_tokens_of_the_vocab_txt(tmp_path: Path, model) -> None:
    """Also with special tokens, and with a token that was added after the vocabulary."""
    tokenizer = Tokenizer(model(IDS, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(kmer.SPECIAL_TOKENS))
    tokenizer.add_tokens(["<gap>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text(kmer.vocabulary_text(3))
    files = vocabulary_files(tmp_path)
    assert [path.name for path in files] == ["vocab.txt", "tokenizer.json"]
    for path in files:
        assert read_vocabulary(path) == kmer.vocabulary(3)
        assert k_of_vocabulary(read_vocabulary(path)) == 3


def test_special_tokens_may_be_missing_in_the_models_own_vocabulary(tmp_path: Path) -> None:
    kmers = {token: index for token, index in IDS.items() if index >= kmer.NUM_SPECIAL}
    added = [{"id": index, "content": token} for index, token in enumerate(kmer.SPECIAL_TOKENS)]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": added, "model": {"type": "WordLevel", "vocab": kmers}}))
    assert read_vocabulary(path) == kmer.vocabulary(3)


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["[PAD]", 0.0], ["AC", -1.5]]}}))
    assert read_vocabulary(path) == ["[PAD]", "AC"]
    assert k_of_vocabulary(read_vocabulary(path)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "holds no vocabulary"),
        ('{"model": {"vocab": "A"}}', "holds no vocabulary"),
        ('{"model": {"vocab": {"A": "x"}}}', "holds no vocabulary"),
        ('{"model": {"vocab": {"A": 0, "B": 2}}}', "its ids are not 0 to 1"),
        ('{"model": {"vocab": {"A": 0, "B": 0}}}', "its ids are not 0 to 1"),
    ],
)
def test_a_damaged_tokenizer_json_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(path)
    assert "\n" not in str(caught.value) and "restore the file" in str(caught.value)


@pytest.mark.parametrize("order", ["ACGT", "TACG"])
def test_another_order_of_bases_is_no_kmer_vocabulary(order: str) -> None:
    kmers = [""]
    for _ in range(3):
        kmers = [prefix + base for prefix in kmers for base in order]
    assert k_of_vocabulary([*kmer.SPECIAL_TOKENS, *kmers]) is None
