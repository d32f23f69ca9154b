"""Windows over a long sequence: every token, no more than fit, nothing twice that need not be."""

from __future__ import annotations

import pytest

from dnabert_rm.tokenizer.windows import windows


@pytest.mark.parametrize("room", [1, 2, 7, 510])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 6, 7, 8, 509, 510, 511, 2000])
@pytest.mark.parametrize("stride", [None, 1])
def test_every_token_lies_in_a_window_that_the_model_can_take(num_tokens: int, room: int, stride: int | None) -> None:
    found = list(windows(num_tokens, room, stride))
    assert {i for window in found for i in window} == set(range(num_tokens))
    assert {len(window) for window in found} == {min(room, num_tokens)}
    assert len({window.start for window in found}) == len(found)
    assert len(found) == 1 or num_tokens > room
    assert found[-1].stop == num_tokens


def test_a_stride_that_would_leave_tokens_out_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves tokens out"):
        list(windows(100, 10, 11))
