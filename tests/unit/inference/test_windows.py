"""Windows over a long sequence cover every token, fit the model, and overlap no more than needed."""

from __future__ import annotations

import pytest

from dnabert_rm.tokenizer.windows import windows


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 510])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 6, 7, 8, 509, 510, 511, 2000])
@pytest.mark.parametrize("stride", [None, 1])
def test_every_token_is_in_a_window_that_fits_the_model(num_tokens: int, max_tokens: int, stride: int | None) -> None:
    found = list(windows(num_tokens, max_tokens, stride))
    assert {i for window in found for i in window} == set(range(num_tokens))
    assert {len(window) for window in found} == {min(max_tokens, num_tokens)}
    assert len({window.start for window in found}) == len(found)
    assert len(found) == 1 or num_tokens > max_tokens
    assert found[-1].stop == num_tokens


def test_a_stride_that_skips_tokens_is_rejected() -> None:
    with pytest.raises(ValueError, match="skips tokens between windows"):
        list(windows(100, 10, 11))
