"""The tokenizer against DNABERT's files and method: k-mers joined by spaces, encoded by `BertTokenizer`."""

import csv

import pytest
from transformers import BertTokenizer

from dnabert_rm.tokenizer import KmerTokenizer


def spaced(sequence: str, k: int) -> str:
    """Return DNABERT's notation, including the last k-mer, which DNABERT's script loses."""
    return " ".join(sequence[i : i + k] for i in range(len(sequence) - k + 1))


def real_sequences(test_data, number):
    """Return sequences of GUE, in upper case."""
    with open(test_data / "gue" / "prom" / "prom_core_tata" / "dev.csv", newline="") as stream:
        return [row["sequence"] for _, row in zip(range(number), csv.DictReader(stream), strict=False)]


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_dnabert_folder(test_data, tmp_path, k):
    """A folder with only `vocab.txt` and `config.json` loads, gives DNABERT's ids, and is saved byte for byte."""
    folder = test_data / "dnabert" / str(k)
    ours = KmerTokenizer.from_pretrained(folder)
    vocabulary = (folder / "vocab.txt").read_text().split()
    theirs = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=False)
    sequences = [*real_sequences(test_data, 40), "ACGTNACGTACGTACGN", "A" * k]
    expected = theirs([spaced(sequence, k) for sequence in sequences])["input_ids"]
    assert ours.k == k
    assert ours(sequences)["input_ids"] == expected
    assert ours([sequence.lower() for sequence in sequences])["input_ids"] == expected
    assert ours([spaced(sequence, k) for sequence in sequences])["input_ids"] == expected
    ours.save_pretrained(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()


@pytest.mark.parametrize("k", [3, 6])
def test_bert_tokenizer_loads_our_vocabulary(tmp_path, k):
    """The same without DNABERT's files: `BertTokenizer` with the vocabulary that we save."""
    ours = KmerTokenizer(k)
    ours.save_pretrained(tmp_path)
    vocabulary = (tmp_path / "vocab.txt").read_text().split()
    theirs = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=False)
    sequence = "ACGTTGCANNACGGTACCATGGCC"
    assert theirs(spaced(sequence, k))["input_ids"] == ours(sequence)["input_ids"]
