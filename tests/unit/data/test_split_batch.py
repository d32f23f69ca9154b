"""The split of global batches into micro-batches, also after the ranks or batches have changed."""

from __future__ import annotations

import pytest

from dnabert_rm.data.batching import BatchPlan, split_batch
from dnabert_rm.utils.errors import ConfigError

GROWING = BatchPlan.growing(4, 4, 12, 10)  # 4, 8, 12


@pytest.mark.parametrize("step", [0, 5, 10, 100])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_resumed_run_has_the_micro_batches_of_an_uninterrupted_one(step: int, ranks: int) -> None:
    assert split_batch(GROWING, 0, ranks, step).micro_batch == 4 // ranks


def test_completed_batches_need_not_divide() -> None:
    split = split_batch(GROWING, 0, 3, first_step=10)
    assert (split.micro_batch, split.accumulation(12), split.global_batch) == (4, 1, 12)
    assert split_batch(GROWING, 2, 3, first_step=10).accumulation(12) == 2
    earlier = BatchPlan.constant(128).changed(7, 60)
    assert split_batch(earlier, 0, 3, first_step=7).global_batch == 60
    with pytest.raises(ConfigError, match="8 is not a multiple of"):
        split_batch(GROWING, 3, 1, first_step=5)
    with pytest.raises(ConfigError, match="choose a multiple of 3"):
        split_batch(GROWING, 0, 3, first_step=9)
