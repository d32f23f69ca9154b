"""The k-mer alphabet: bases to overlapping k-mer ids and back, reverse complements, the vocabulary.

Bases are coded A = 0, T = 1, C = 2, G = 3, the order of DNABERT's vocabulary files, so that the
complement of a code is `code ^ 1`. The id of the k-mer with codes c_0 … c_{k-1} is

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
MIN_K, MAX_K = 3, 8
AMBIGUOUS = 4
"""The code of everything that is not A, C, G or T (any case)."""

_CODE_OF_BYTE = np.full(256, AMBIGUOUS, dtype=np.uint8)
for _code, _base in enumerate(BASE_ORDER):
    _CODE_OF_BYTE[ord(_base)] = _CODE_OF_BYTE[ord(_base.lower())] = _code
_BYTE_OF_CODE = np.frombuffer(BASE_ORDER.encode(), dtype=np.uint8)
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")


def check_k(k: int) -> int:
    """Return `k`, or raise `ConfigError` where it is outside 3 … 8."""
    if not MIN_K <= k <= MAX_K:
        raise ConfigError(f"--k {k}: k must be between {MIN_K} and {MAX_K}")
    return k


def vocab_size(k: int) -> int:
    """Number of ids: the special tokens and 4^k k-mers (4,101 at k = 6)."""
    return NUM_SPECIAL + 4**k


def id_dtype(size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds ids below `size`."""
    return np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)


def vocabulary(k: int) -> list[str]:
    """Every token in the order of its id, as DNABERT's `vocab.txt` lists them."""
    kmers = [""]
    for _ in range(k):
        kmers = [prefix + base for prefix in kmers for base in BASE_ORDER]
    return [*SPECIAL_TOKENS, *kmers]


def vocabulary_text(k: int) -> str:
    """The bytes of DNABERT's `vocab.txt`, whose files for k = 3 to 5 end without a line break."""
    return "\n".join(vocabulary(k)) + ("" if k < 6 else "\n")


def base_codes(sequence: bytes | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes 0 … 3 of the bases in any case, `AMBIGUOUS` for every other letter; shape (N,), uint8."""
    if isinstance(sequence, str):
        # One byte a letter, whatever the letter: what Latin-1 lacks becomes "?", which is ambiguous.
        sequence = sequence.encode("latin-1", errors="replace")
    if isinstance(sequence, bytes):
        sequence = np.frombuffer(sequence, dtype=np.uint8)
    return _CODE_OF_BYTE[sequence]


def codes_to_bases(codes: NDArray[np.uint8]) -> bytes:
    """Upper-case bases of codes 0 … 3, shape (N,)."""
    return _BYTE_OF_CODE[codes].tobytes()


def encode_codes(codes: NDArray[np.uint8], k: int) -> NDArray:
    """Overlapping k-mer ids of unambiguous base codes.

    Args: `codes` (N,) uint8 with values 0 … 3; `k` the bases a token covers.
    Returns ids (N - k + 1,), `id_dtype(vocab_size(k))`; empty where N < k.
    Token i covers bases i … i + k - 1, so the last k-mer is included (DNABERT loses it).
    """
    num_tokens = max(0, len(codes) - k + 1)
    dtype = id_dtype(vocab_size(k))
    # Doubling: 1-mers make 2-mers, 2-mers make 4-mers, and so on, each in the narrowest integer
    # that holds it; about log2(k) passes in place of k.
    words: NDArray = codes
    width, done, done_width = 1, None, 0
    remaining = k
    while remaining:
        if remaining & 1:
            done = words if done is None else _join(words, width, done, done_width)
            done_width += width
        remaining >>= 1
        if remaining:
            words, width = _join(words, width, words, width), 2 * width
    assert done is not None and done_width == k
    return done[:num_tokens].astype(dtype) + dtype.type(NUM_SPECIAL)


def _join(left: NDArray[Any], left_width: int, right: NDArray[Any], right_width: int) -> NDArray[Any]:
    """Words of `left_width + right_width` bases from words at i and at i + left_width."""
    size = max(0, min(len(left), len(right) - left_width))
    bits = 2 * (left_width + right_width)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    # A product and a sum in place of a shift and an or: numpy's shift of bytes is several times slower.
    joined: NDArray[Any] = np.multiply(left[:size], dtype(4**right_width), dtype=dtype)
    joined += right[left_width : left_width + size]
    return joined


def encode(sequence: bytes | str, k: int) -> NDArray:
    """Overlapping k-mer ids of a sequence; `[UNK]` where a token covers a letter other than A, C, G, T.

    Returns ids (N - k + 1,), `id_dtype(vocab_size(k))`; empty where N < k.
    """
    codes = base_codes(sequence)
    ambiguous = codes == AMBIGUOUS
    if not ambiguous.any():
        return encode_codes(codes, k)
    ids = encode_codes(np.where(ambiguous, np.uint8(0), codes), k)
    unknown = np.convolve(ambiguous, np.ones(k, dtype=np.int64), mode="full")[k - 1 : len(codes)] > 0
    ids[unknown[: len(ids)]] = UNK_ID
    return ids


def kmer_codes(ids: NDArray, k: int) -> NDArray[np.uint8]:
    """Base codes of each k-mer: ids (…,) of k-mers → codes (…, k) uint8."""
    shifts = np.arange(2 * (k - 1), -1, -2)
    return ((np.asarray(ids, dtype=np.int64)[..., None] - NUM_SPECIAL) >> shifts & 3).astype(np.uint8)


def decode(ids: NDArray, k: int) -> str:
    """The bases of overlapping k-mer ids: (T,) ids → T + k - 1 upper-case letters.

    Every id must be a k-mer that overlaps the one before it by k - 1 bases, else `DataError`.
    """
    if len(ids) == 0:
        return ""
    numbers = np.asarray(ids, dtype=np.int64) - NUM_SPECIAL
    if numbers.min() < 0 or numbers.max() >= 4**k:
        raise DataError(f"ids to decode must be {k}-mers ({NUM_SPECIAL} … {vocab_size(k) - 1})")
    broken = np.flatnonzero(numbers[:-1] % 4 ** (k - 1) != numbers[1:] // 4)
    if len(broken):
        raise DataError(f"tokens {broken[0]} and {broken[0] + 1} do not overlap by {k - 1} bases")
    first = kmer_codes(np.asarray(ids[:1]), k)[0]
    return codes_to_bases(np.concatenate([first, (numbers[1:] & 3).astype(np.uint8)])).decode()


@lru_cache
def reverse_complement_table(k: int) -> NDArray:
    """Id of the reverse complement of every id, shape (vocab_size(k),); special tokens map to themselves."""
    size = vocab_size(k)
    numbers = np.arange(4**k, dtype=np.int64)
    reverse = np.zeros_like(numbers)
    for shift in range(0, 2 * k, 2):
        reverse = reverse << 2 | (numbers >> shift & 3) ^ 1
    table = np.concatenate([np.arange(NUM_SPECIAL), reverse + NUM_SPECIAL]).astype(id_dtype(size))
    table.flags.writeable = False
    return table


def reverse_complement_ids(ids: NDArray, k: int) -> NDArray:
    """Overlapping ids of the opposite strand: a table look-up and a flip of the last axis, (…, T) → (…, T)."""
    return reverse_complement_table(k)[ids][..., ::-1]


def reverse_complement(sequence: bytes) -> bytes:
    """The opposite strand; letters other than A, C, G, T (any case) stay, since no token tells them apart."""
    return sequence.translate(_COMPLEMENT)[::-1]
