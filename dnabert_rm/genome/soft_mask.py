"""Soft-masked bases as packed bits: the lower-case letters of a FASTA, which mark repeats.

Shapes: N bases of a segment, R ranges, B windows, W bytes per window, M k-mers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARE_BYTES = 2
"""Number of bytes after the bits of a segment, so that the bytes of its last window are complete."""
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8), axis=1, bitorder="little")[:, 0]
"""Every byte with its bits in reverse order."""


def pack_ranges(ranges: Any, start: int, num_bases: int) -> bytes:
    """Return one bit per base, 1 if the base is in a range. The first base is the highest bit of the first byte.

    `ranges` (R, 2) are ascending half-open ranges within the bases `start` … `start + num_bases - 1`. Zero bytes
    (`SPARE_BYTES`) follow the bits. Raises `ValueError` or `TypeError` for any other `ranges`.
    """
    edges = np.asarray(ranges) if len(ranges) else np.empty((0, 2), dtype=np.int64)
    if edges.dtype != np.int64 or edges.shape != (len(ranges), 2):
        raise ValueError("the ranges are not pairs of integers")
    lengths = np.diff(edges.reshape(-1) - start, prepend=0, append=num_bases)
    if (lengths < 0).any():
        raise ValueError("the ranges are not ascending, or not in the segment")
    is_masked = np.zeros(len(lengths), dtype=np.uint8)
    is_masked[1::2] = 1
    return np.packbits(np.repeat(is_masked, lengths)).tobytes() + bytes(SPARE_BYTES)


def num_window_bytes(num_bases: int) -> int:
    """Return the number of bytes to read for `num_bases` bits that begin anywhere in the first byte; one is spare."""
    return (num_bases + 14) // 8 + 1


@dataclass(frozen=True)
class SoftMask:
    """The soft-masked bases of B windows of k-mers, in the order in which the model reads them.

    `bits` (B, W) uint8 holds one bit per base. `first_bit` (B,) int64 is the index of the bit of each window's first
    base. `k` is the number of bases per token, and `stride` the number of bases from one token to the next.
    """

    bits: NDArray[np.uint8]
    first_bit: NDArray[np.int64]
    k: int
    stride: int

    @classmethod
    def of_windows(
        cls, windows: list[bytes], first_bit: NDArray[np.int64], reverse: NDArray[np.bool_], num_bases: int, **how: int
    ) -> SoftMask:
        """Return the soft mask of B windows of `num_bases` bases. `how` holds `k` and `stride`.

        Args:
            windows: `num_window_bytes(num_bases)` bytes of each window, on the forward strand.
            first_bit: Bit of each window's first base, (B,), 0 to 7.
            reverse: Whether the model reads the reverse strand of a window, (B,).
            num_bases: Bases per window.
        """
        bits = np.frombuffer(b"".join(windows), dtype=np.uint8).reshape(len(windows), -1)
        if reverse.any():
            bits = bits.copy()
            bits[reverse, :-1] = _REVERSED[bits[reverse][:, -2::-1]]
            first_bit = np.where(reverse, 8 * (bits.shape[1] - 1) - num_bases - first_bit, first_bit)
        return cls(bits, first_bit, **how)

    def base_weights(self, counts: NDArray[np.int64], tokens: NDArray[np.int64], weight: float) -> NDArray[np.float32]:
        """Return the weight of each base of M k-mers, (M, k): `weight` if it is soft-masked, otherwise 1.

        `counts` (B,) is the number of these k-mers in each window. `tokens` (M,) holds the index of each k-mer in its
        window, one window after another.
        """
        row_bits = 8 * self.bits.shape[1] * np.arange(len(counts)) + self.first_bit
        bit = np.repeat(row_bits, counts) + tokens * self.stride
        flat = self.bits.reshape(-1)
        two_bytes = flat[:-1].astype(np.uint16) << 8 | flat[1:]
        # The k bits of each k-mer, as a number.
        is_masked = two_bytes[bit >> 3] >> (16 - self.k - (bit & 7)).astype(np.uint16) & (1 << self.k) - 1
        return _kmer_weights(self.k, weight).take(is_masked, axis=0)


@cache
def _kmer_weights(k: int, weight: float) -> NDArray[np.float32]:
    """Return the base weights for each set of soft-masked bases, (2^k, k). The highest bit is the first base."""
    is_masked = np.arange(1 << k)[:, None] >> np.arange(k - 1, -1, -1) & 1
    return np.where(is_masked, weight, 1.0).astype(np.float32)
