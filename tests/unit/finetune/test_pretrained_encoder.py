"""The tokenizer of a model folder, which stock transformers may have saved."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from transformers import BertConfig, BertTokenizer

from dnabert_rm.finetune.pretrained_encoder import load_tokenizer
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.utils.errors import CheckpointError

CONFIG = BertConfig(vocab_size=kmer.vocab_size(3))


def save_stock(folder: Path, tokens: list[str]) -> Path:
    """Save transformers' own tokenizer, which writes tokenizer.json and no vocab.txt."""
    BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(folder)
    assert not (folder / "vocab.txt").exists()
    return folder


def test_a_folder_with_only_tokenizer_json_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_stock(tmp_path, kmer.vocabulary(3)), CONFIG)
    assert tokenizer("ACGTTGCA")["input_ids"] == KmerTokenizer(3)("ACGTTGCA")["input_ids"]


def test_another_base_order_in_tokenizer_json_is_refused(tmp_path: Path) -> None:
    """Also if tokenizer_config.json names k, as for a folder of ours whose vocab.txt is lost."""
    tokens = [*kmer.SPECIAL_TOKENS, *map("".join, itertools.product("ACGT", repeat=3))]
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a k-mer vocabulary in DNABERT's order"):
        load_tokenizer(save_stock(tmp_path / "stock", tokens), CONFIG)
    KmerTokenizer(3).save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "vocab.txt").unlink()
    load_tokenizer(tmp_path / "ours", CONFIG)
    (tmp_path / "stock" / "tokenizer.json").replace(tmp_path / "ours" / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a k-mer vocabulary in DNABERT's order"):
        load_tokenizer(tmp_path / "ours", CONFIG)


def test_two_vocabularies_that_differ_are_refused(tmp_path: Path) -> None:
    save_stock(tmp_path, kmer.vocabulary(3))
    (tmp_path / "vocab.txt").write_text(kmer.vocabulary_text(4))
    with pytest.raises(CheckpointError, match=r"vocab.txt and tokenizer.json differ"):
        load_tokenizer(tmp_path, CONFIG)


@pytest.mark.parametrize(("size", "fits"), [(68, False), (69, True), (72, True), (260, True), (261, False)])
def test_the_vocabulary_must_fit_the_embeddings(tmp_path: Path, size: int, fits: bool) -> None:
    """A few unused embeddings are common, but a model with embeddings for 4-mers is not one for 3-mers."""
    save_stock(tmp_path, kmer.vocabulary(3))
    config = BertConfig(vocab_size=size)
    if fits:
        assert load_tokenizer(tmp_path, config).k == 3
    else:
        with pytest.raises(CheckpointError, match=f"tokenizer.json has 69 tokens, but the model has {size} embeddings"):
            load_tokenizer(tmp_path, config)
