"""Overlapping k-mers: encoding, decoding, reverse complements and the vocabulary.

Bases are coded A = 0, T = 1, C = 2, G = 3, in the order of DNABERT's vocabulary files. In this order the complement of
a code is `code ^ 1`. The id of the k-mer with codes c_0 … c_{k-1} is

    NUM_SPECIAL + sum_j c_j * 4^(k-1-j)

Shapes: N bases, T = N - k + 1 tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.utils.errors import ConfigError, DataError

BASE_ORDER = "ATCG"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
NUM_SPECIAL = len(SPECIAL_TOKENS)
MIN_K = 3
MAX_K = 8
AMBIGUOUS = 4
"""The code of every letter other than A, C, G, T in either case."""

_CODE_OF_BYTE = np.full(256, AMBIGUOUS, dtype=np.uint8)
for _code, _base in enumerate(BASE_ORDER):
    _CODE_OF_BYTE[ord(_base)] = _CODE_OF_BYTE[ord(_base.lower())] = _code
_BYTE_OF_CODE = np.frombuffer(BASE_ORDER.encode(), dtype=np.uint8)
_COMPLEMENT = bytes.maketrans(b"ACGTRYKMBVDHacgtrykmbvdh", b"TGCAYRMKVBHDtgcayrmkvbhd")


def check_k(k: int) -> int:
    """Return `k`. Raise `ConfigError` if `k` is outside 3 … 8."""
    if not MIN_K <= k <= MAX_K:
        raise ConfigError(f"--k {k}: k must be between {MIN_K} and {MAX_K}")
    return k


def vocab_size(k: int) -> int:
    """Return the number of ids for the special tokens and all 4^k k-mers: 4,101 at k = 6."""
    return NUM_SPECIAL + 4**k


def id_dtype(size: int) -> np.dtype:
    """Return uint16 if it can hold all ids below `size`, otherwise uint32."""
    return np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)


def vocabulary(k: int) -> list[str]:
    """Return all tokens in order of their ids, as in DNABERT's `vocab.txt`."""
    kmers = [""]
    for _ in range(k):
        kmers = [prefix + base for prefix in kmers for base in BASE_ORDER]
    return [*SPECIAL_TOKENS, *kmers]


def vocabulary_text(k: int) -> str:
    """Return the text of DNABERT's `vocab.txt`. The files for k = 3 to 5 have no final line break."""
    return "\n".join(vocabulary(k)) + ("" if k < 6 else "\n")


def base_codes(sequence: bytes | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each letter's code, (N,) uint8: 0 … 3 for a base in either case, `AMBIGUOUS` for any other letter."""
    if isinstance(sequence, str):
        # One byte per letter. Letters outside Latin-1 become "?", which is ambiguous.
        sequence = sequence.encode("latin-1", errors="replace")
    if isinstance(sequence, bytes):
        sequence = np.frombuffer(sequence, dtype=np.uint8)
    return _CODE_OF_BYTE[sequence]


def codes_to_bases(codes: NDArray[np.uint8]) -> bytes:
    """Return the upper-case bases of codes 0 … 3, (N,), as a string of N bytes."""
    return _BYTE_OF_CODE[codes].tobytes()


def encode_codes(codes: NDArray[np.uint8], k: int) -> NDArray:
    """Encode unambiguous base codes as overlapping k-mer ids.

    Token i covers bases i … i + k - 1. The last k-mer is included; DNABERT drops it.

    Args:
        codes: (N,) uint8 with values 0 … 3.
        k: Bases per token.

    Returns: ids (N - k + 1,), `id_dtype(vocab_size(k))`; empty if N < k.
    """
    num_tokens = max(0, len(codes) - k + 1)
    dtype = id_dtype(vocab_size(k))
    # Doubling: 1-mers make 2-mers, 2-mers make 4-mers, and so on, each in the smallest integer type that fits.
    # This takes about log2(k) passes instead of k.
    words: NDArray = codes
    width = 1
    result: NDArray | None = None
    result_width = 0
    remaining = k
    while remaining:
        if remaining & 1:
            result = words if result is None else _join(words, width, result, result_width)
            result_width += width
        remaining >>= 1
        if remaining:
            words = _join(words, width, words, width)
            width *= 2
    assert result is not None and result_width == k
    return result[:num_tokens].astype(dtype) + dtype.type(NUM_SPECIAL)


def _join(left: NDArray[Any], left_width: int, right: NDArray[Any], right_width: int) -> NDArray[Any]:
    """Return, for each position, a number that encodes the `left_width + right_width` bases from this position on.

    `left` holds such numbers for `left_width` bases, and `right` for `right_width` bases.
    """
    size = max(0, min(len(left), len(right) - left_width))
    bits = 2 * (left_width + right_width)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    # Multiply and add, because shifting bytes in numpy is several times slower.
    joined: NDArray[Any] = np.multiply(left[:size], dtype(4**right_width), dtype=dtype)
    joined += right[left_width : left_width + size]
    return joined


def encode(sequence: bytes | str, k: int) -> NDArray:
    """Encode a sequence of N letters as overlapping k-mer ids. A k-mer with a letter other than A, C, G, T is `[UNK]`.

    Returns: ids (N - k + 1,), `id_dtype(vocab_size(k))`; empty if N < k.
    """
    return encode_with_unknown(base_codes(sequence), k)


def encode_with_unknown(codes: NDArray[np.uint8], k: int) -> NDArray:
    """Encode base codes (N,) as `encode` does. A k-mer with an `AMBIGUOUS` base is `[UNK]`."""
    ambiguous = codes == AMBIGUOUS
    if not ambiguous.any():
        return encode_codes(codes, k)
    ids = encode_codes(np.where(ambiguous, np.uint8(0), codes), k)
    unknown = np.convolve(ambiguous, np.ones(k, dtype=np.int64), mode="full")[k - 1 : len(codes)] > 0
    ids[unknown[: len(ids)]] = UNK_ID
    return ids


def decode_codes(ids: NDArray, k: int) -> NDArray[np.uint8]:
    """Decode overlapping k-mer ids, (T,), to base codes, (T + k - 1,) uint8.

    A base that no k-mer covers is `AMBIGUOUS`. Neighbouring k-mers must agree on the bases that they share.
    """
    codes = np.full(len(ids) + k - 1, AMBIGUOUS, dtype=np.uint8)
    is_kmer = ids >= NUM_SPECIAL
    if is_kmer.all():
        codes[: len(ids)] = (ids - ids.dtype.type(NUM_SPECIAL)) >> 2 * (k - 1)
        codes[len(ids) :] = kmer_codes(ids[-1:], k)[:, 1:].reshape(-1)
        return codes
    by_place = kmer_codes(ids, k)
    for place in range(k):
        codes[place : place + len(ids)][is_kmer] = by_place[is_kmer, place]
    return codes


def kmer_codes(ids: NDArray, k: int) -> NDArray[np.uint8]:
    """Return the base codes of k-mer ids, (…,) → (…, k) uint8."""
    shifts = np.arange(2 * (k - 1), -1, -2)
    return ((np.asarray(ids, dtype=np.int64)[..., None] - NUM_SPECIAL) >> shifts & 3).astype(np.uint8)


def decode(ids: NDArray, k: int) -> str:
    """Decode overlapping k-mer ids, shape (T,), to T + k - 1 upper-case bases.

    Raises `DataError` unless every id is a k-mer that overlaps its predecessor by k - 1 bases.
    """
    if len(ids) == 0:
        return ""
    numbers = np.asarray(ids, dtype=np.int64) - NUM_SPECIAL
    if numbers.min() < 0 or numbers.max() >= 4**k:
        raise DataError(f"ids to decode must be {k}-mers ({NUM_SPECIAL} … {vocab_size(k) - 1}); remove special tokens")
    broken = np.flatnonzero(numbers[:-1] % 4 ** (k - 1) != numbers[1:] // 4)
    if len(broken):
        raise DataError(
            f"tokens {broken[0]} and {broken[0] + 1} do not overlap by {k - 1} bases; "
            "pass overlapping k-mers in sequence order"
        )
    first = kmer_codes(np.asarray(ids[:1]), k)[0]
    return codes_to_bases(np.concatenate([first, (numbers[1:] & 3).astype(np.uint8)])).decode()


@lru_cache
def reverse_complement_table(k: int) -> NDArray:
    """Return a table that maps each k-mer id to the id of its reverse complement, shape (vocab_size(k),).

    Special tokens map to themselves.
    """
    size = vocab_size(k)
    numbers = np.arange(4**k, dtype=np.int64)
    reverse = np.zeros_like(numbers)
    for shift in range(0, 2 * k, 2):
        reverse = reverse << 2 | (numbers >> shift & 3) ^ 1
    table = np.concatenate([np.arange(NUM_SPECIAL), reverse + NUM_SPECIAL]).astype(id_dtype(size))
    table.flags.writeable = False
    return table


def reverse_complement_ids(ids: NDArray, k: int) -> NDArray:
    """Convert the overlapping k-mer ids of T tokens to the ids of the opposite strand, (…, T) → (…, T)."""
    return reverse_complement_table(k)[ids][..., ::-1]


def reverse_complement(sequence: bytes) -> bytes:
    """Return the reverse complement, IUPAC codes included. All other letters only change their place."""
    return sequence.translate(_COMPLEMENT)[::-1]
