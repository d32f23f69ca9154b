"""The k-mer alphabet against DNABERT's vocabulary files and a slow independent encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slow_fasta import slow_file, slow_ids

from dnabert_rm.genome import kmer


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_vocabulary_is_dnaberts_byte_for_byte(k: int, test_data: Path) -> None:
    assert kmer.vocabulary_text(k).encode() == (test_data / "dnabert" / str(k) / "vocab.txt").read_bytes()


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_ids_are_the_lines_of_dnaberts_file(k: int, test_data: Path) -> None:
    lines = (test_data / "dnabert" / str(k) / "vocab.txt").read_text().split()
    number_of = {word: line for line, word in enumerate(lines)}
    assert len(lines) == kmer.vocab_size(k)
    sequence = "".join(np.random.default_rng(k).choice(list("ACGT"), 500))
    expected = [number_of[sequence[i : i + k]] for i in range(500 - k + 1)]
    assert kmer.encode(sequence, k).tolist() == expected
    assert lines[kmer.encode(sequence, k)[-1]] == sequence[-k:], "the last k-mer is the end of the sequence"


@pytest.mark.parametrize("k", range(3, 9))
def test_real_sequences_encode_as_by_the_slow_encoder(k: int, test_data: Path) -> None:
    for file in ("sars_cov_2_MN908947.fa", "athaliana_1pct.fa.gz"):
        for _, sequence in slow_file(test_data / "genomes" / file)[:2]:
            piece = sequence[:30_000]
            assert kmer.encode(piece, k).tolist() == slow_ids(piece, k)


def test_real_sequence_with_ambiguous_letters(test_data: Path) -> None:
    records = slow_file(test_data / "genomes" / "athaliana_1pct.fa.gz")
    seen = 0
    for _, sequence in records:
        for i, letter in enumerate(sequence.upper()):
            if letter in "YKS":
                piece = sequence[max(0, i - 50) : i + 50]
                assert kmer.encode(piece, 6).tolist() == slow_ids(piece, 6)
                seen += 1
    assert seen > 0


def test_reverse_complement_of_real_ids_is_the_ids_of_the_other_strand(test_data: Path) -> None:
    sequence = slow_file(test_data / "genomes" / "sars_cov_2_MN908947.fa")[0][1].upper()
    other = sequence.translate(str.maketrans("ACGT", "TGCA"))[::-1]
    for k in (3, 6, 8):
        ids = kmer.encode(sequence, k)
        assert kmer.reverse_complement_ids(ids, k).tolist() == slow_ids(other, k)
        assert kmer.decode(ids, k) == sequence
