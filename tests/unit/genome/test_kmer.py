"""The k-mer alphabet: boundaries, dtypes, decoding, the reverse strand, ambiguous letters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_fasta import slow_ids

from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import ConfigError, DataError

KS = st.integers(3, 8)
BASES = st.text("ACGT", max_size=60)


@given(st.text("ACGTacgtNnRYU-é€", max_size=60), KS)
@settings(deadline=None)
def test_encode_equals_the_slow_encoder(sequence: str, k: int) -> None:
    ids = kmer.encode(sequence, k)
    assert ids.dtype == (np.uint32 if k == 8 else np.uint16)
    assert ids.tolist() == slow_ids(sequence, k)


@given(BASES, KS)
def test_decode_inverts_encode(sequence: str, k: int) -> None:
    assert kmer.decode(kmer.encode(sequence, k), k) == (sequence if len(sequence) >= k else "")


@given(BASES, KS)
def test_reverse_complement_inverts_itself_and_matches_that_of_the_bases(sequence: str, k: int) -> None:
    ids = kmer.encode(sequence, k)
    reverse = kmer.reverse_complement_ids(ids, k)
    other = sequence.translate(str.maketrans("ACGT", "TGCA"))[::-1]
    assert reverse.tolist() == kmer.encode(other, k).tolist()
    assert kmer.reverse_complement_ids(reverse, k).tolist() == ids.tolist()


@pytest.mark.parametrize("k", range(3, 9))
def test_lengths_on_both_sides_of_k(k: int) -> None:
    assert [len(kmer.encode("A" * n, k)) for n in (0, k - 1, k, k + 1)] == [0, 0, 1, 2]
    assert kmer.encode("A" * k, k).tolist() == [kmer.NUM_SPECIAL]
    assert kmer.encode("G" * k, k).tolist() == [kmer.vocab_size(k) - 1]


def test_order_of_the_bases_and_complement_by_xor() -> None:
    assert kmer.vocabulary(3)[:10] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "AAA", "AAT", "AAC", "AAG", "ATA"]
    assert kmer.codes_to_bases(kmer.base_codes("ATCGatcg") ^ 1) == b"TAGCTAGC"


@pytest.mark.parametrize("k", [2, 9, 0, -1])
def test_k_outside_its_range_raises(k: int) -> None:
    with pytest.raises(ConfigError, match=f"--k {k}"):
        kmer.check_k(k)


@pytest.mark.parametrize("ids", [[4], [5 + 4**3], [5, 5 + 16], [1, 5]])
def test_inconsistent_ids_do_not_decode(ids: list[int]) -> None:
    with pytest.raises(DataError):
        kmer.decode(np.array(ids), 3)


def test_special_tokens_are_their_own_reverse_complement() -> None:
    for k in (3, 6):
        table = kmer.reverse_complement_table(k)
        assert table[: kmer.NUM_SPECIAL].tolist() == list(range(kmer.NUM_SPECIAL))
        assert sorted(table.tolist()) == list(range(kmer.vocab_size(k)))
