"""Learning rate as a function of the step, and parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnabert_rm.train.optimizer import learning_rate, parameter_groups, warmup_length


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    rates = [learning_rate(s, peak=1.0, schedule=schedule, warmup_steps=4, total_steps=10) for s in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_decay_is_halfway_in_the_middle_and_zero_at_the_end() -> None:
    for schedule in ("linear", "cosine"):
        rate = [
            learning_rate(s, peak=2.0, schedule=schedule, warmup_steps=0, total_steps=100) for s in (0, 50, 100, 101)
        ]
        assert rate == pytest.approx([2.0, 1.0, 0.0, 0.0], abs=1e-9)


def test_the_papers_warm_up_is_scaled_to_the_steps() -> None:
    assert warmup_length(-1, 480_000) == 10_000
    assert warmup_length(-1, 480) == 10
    assert warmup_length(7, 480) == 7


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_wsd_never_jumps_when_the_decay_would_begin_in_the_warm_up() -> None:
    rates = [
        learning_rate(step, peak=1.0, schedule="wsd", warmup_steps=50, total_steps=100, decay_share=0.8)
        for step in range(100)
    ]
    assert max(np.abs(np.diff(rates))) == pytest.approx(0.02) and rates[49:51] == [1.0, 1.0]


def test_wsd_stays_at_the_peak_until_the_last_share() -> None:
    rates = [
        learning_rate(step, peak=1.0, schedule="wsd", warmup_steps=4, total_steps=100, decay_share=0.2)
        for step in range(100)
    ]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:81] == [1.0] * 77
    assert rates[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])
