"""A sequence with more tokens than a model has positions, cut into windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator


def windows(num_tokens: int, room: int, stride: int | None = None) -> Iterator[range]:
    """The windows over `num_tokens` tokens, each of `room` tokens, `stride` apart, by default half a window.

    Every token lies in one window or more. The last window ends with the last token, so it may overlap more. One
    window of all tokens, or of none, where `room` holds them.
    """
    if not 0 < (stride := stride or max(1, room // 2)) <= room:
        raise ValueError(f"stride {stride} of windows of {room} tokens leaves tokens out")
    last = max(0, num_tokens - room)
    for start in range(0, last, stride):
        yield range(start, start + room)
    yield range(last, num_tokens)
