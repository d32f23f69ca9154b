"""Packed soft masks: every window of a small segment, on both strands, against its letters."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import random_repeats

from dnabert_rm.genome.soft_mask import SoftMask, num_window_bytes, pack_ranges


def soft_mask_of(
    packed: bytes, starts: list[int], reverse: list[bool], num_tokens: int, k: int, stride: int
) -> SoftMask:
    num_bases = (num_tokens - 1) * stride + k
    num_bytes = num_window_bytes(num_bases)
    windows = [packed[start >> 3 : (start >> 3) + num_bytes] for start in starts]
    return SoftMask.of_windows(windows, np.array(starts) & 7, np.array(reverse), num_bases, k=k, stride=stride)


@pytest.mark.parametrize("k", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("num_bases", [35, 40, 41])
def test_every_window_of_a_segment(k: int, overlap: bool, num_bases: int) -> None:
    letters = "".join(random_repeats(np.random.default_rng(seed), num_bases + 100) for seed in range(3))[50:][
        :num_bases
    ]
    letters = letters[:5] + letters[5:20].swapcase() + letters[20:]
    ranges, stride = [match.span() for match in re.finditer("[a-z]+", letters)], 1 if overlap else k
    packed = pack_ranges([[start + 700, end + 700] for start, end in ranges], 700, num_bases)
    for num_tokens in range(1, (num_bases - k) // stride + 2):
        size = (num_tokens - 1) * stride + k
        starts = [start for start in range(num_bases - size + 1) for _ in range(2)]
        reverse = [number % 2 == 1 for number in range(len(starts))]
        mask = soft_mask_of(packed, starts, reverse, num_tokens, k, stride)
        tokens = np.tile(np.arange(num_tokens), len(starts))
        found = mask.base_weights(np.full(len(starts), num_tokens), tokens, 0.1).reshape(len(starts), num_tokens, k)
        for row, (start, is_reverse) in enumerate(zip(starts, reverse, strict=True)):
            window = letters[start : start + size][:: -1 if is_reverse else 1]
            expected = [[window[token * stride + place].islower() for place in range(k)] for token in range(num_tokens)]
            np.testing.assert_array_equal(found[row], np.where(expected, np.float32(0.1), np.float32(1)))


def test_windows_can_have_different_numbers_of_tokens() -> None:
    packed = pack_ranges([[0, 8]], 0, 40)
    mask = soft_mask_of(packed, [0, 0, 20], [False] * 3, 10, 4, 1)
    found = mask.base_weights(np.array([2, 0, 1]), np.array([0, 6, 3]), 0.5)
    assert found.tolist() == [[0.5] * 4, [0.5, 0.5, 1.0, 1.0], [1.0] * 4]


@pytest.mark.parametrize("ranges", [[], [[0, 9]], [[0, 1], [1, 2], [8, 9]], [[4, 4]]])
def test_bits_are_those_of_the_ranges(ranges: list[list[int]]) -> None:
    expected = [any(start <= base < end for start, end in ranges) for base in range(9)]
    bits = np.unpackbits(np.frombuffer(pack_ranges(ranges, 0, 9), dtype=np.uint8))
    assert bits[:9].tolist() == expected and not bits[9:].any()


@pytest.mark.parametrize(
    "ranges", [[[0, 10]], [[3, 2]], [[4, 6], [5, 7]], [[-1, 2]], [1, 2], [[0.5, 1]], [[True, False]]]
)
def test_ranges_outside_the_segment_or_out_of_order_are_refused(ranges: list) -> None:
    with pytest.raises(ValueError, match="the ranges are not"):
        pack_ranges(ranges, 0, 9)
