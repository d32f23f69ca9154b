"""The schedule of phases, spans and rates: the paper's, scaled ones, and the control arms."""

from __future__ import annotations

import numpy as np
import pytest

from dnabert_rm.masking.schedule import (
    PAPER_PHASE_ENDS,
    PAPER_STEPS,
    MaskSchedule,
    expected_fraction,
    make_schedule,
    resolve_phase_ends,
    scaled_phase_ends,
)
from dnabert_rm.utils.errors import ConfigError

BOUNDARIES = [
    (0, 1, 6),
    (29_999, 1, 6),
    (30_000, 2, 8),
    (59_999, 2, 8),
    (60_000, 3, 10),
    (99_999, 3, 10),
    (100_000, 4, 12),
    (149_999, 4, 12),
    (150_000, 5, 14),
    (479_999, 5, 14),
    (480_000, 5, 14),
    (10**9, 5, 14),
]
"""(step, phase, largest span) at both sides of every boundary."""


@pytest.mark.parametrize(("step", "phase", "largest"), BOUNDARIES)
@pytest.mark.parametrize("draw", ["uniform", "max"])
def test_phases_begin_and_end_at_the_papers_steps(step, phase, largest, draw):
    schedule = make_schedule("randommask", k=6, total_steps=PAPER_STEPS, draw=draw)
    assert int(schedule.phase_of(step)) == phase
    assert schedule.max_span(step) == largest
    expected = tuple(range(6, largest + 1, 2)) if draw == "uniform" else (largest,)
    assert schedule.spans[phase - 1] == expected


def test_phases_of_many_steps_at_once():
    schedule = make_schedule("randommask", k=6, total_steps=PAPER_STEPS)
    steps = np.array([[step for step, _, _ in BOUNDARIES]])
    assert schedule.phase_of(steps).tolist() == [[phase for _, phase, _ in BOUNDARIES]]


@pytest.mark.parametrize("k", range(3, 9))
def test_spans_start_at_k_and_grow_by_two(k):
    schedule = make_schedule("randommask", k=k, total_steps=PAPER_STEPS)
    assert schedule.spans == tuple(tuple(range(k, k + 2 * phase + 1, 2)) for phase in range(5))
    assert schedule.rates == (0.025,) * 5


def test_phase_ends_scale_with_the_run():
    assert scaled_phase_ends(PAPER_STEPS) == PAPER_PHASE_ENDS
    assert scaled_phase_ends(960_000) == tuple(2 * end for end in PAPER_PHASE_ENDS)
    assert scaled_phase_ends(1000) == (62, 125, 208, 312, 1000)
    assert scaled_phase_ends(2400) == (150, 300, 500, 750, 2400)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 10, 20])
def test_a_run_too_short_for_five_phases_skips_some(total_steps):
    schedule = make_schedule("randommask", k=6, total_steps=total_steps)
    phases = schedule.phase_of(np.arange(total_steps))
    assert (np.diff(phases) >= 0).all()
    assert phases[-1] == 5


def test_phase_ends_in_steps_or_fractions():
    assert resolve_phase_ends([10, 20, 50], 40) == (10, 20, 50)
    assert resolve_phase_ends([0.5, 0.75, 1], 1000) == (500, 750, 1000)
    assert resolve_phase_ends([1], 1000) == (1000,)
    custom = make_schedule("randommask", k=6, total_steps=50, phase_ends=[10, 50], phase_spans=[6, 20])
    assert (custom.max_span(9), custom.max_span(10), custom.max_span(49)) == (6, 20, 20)


def test_a_largest_span_below_k_is_the_only_span():
    schedule = make_schedule("randommask", k=6, total_steps=9, phase_ends=[3, 6, 9], phase_spans=[3, 7, 9])
    assert schedule.spans == ((3,), (6,), (6, 8))


@pytest.mark.parametrize("draw", ["uniform", "max"])
def test_matched_rates_keep_the_fraction_of_the_first_phase(draw):
    schedule = make_schedule("randommask-matched", k=6, total_steps=PAPER_STEPS, draw=draw)
    assert schedule.rates[0] == pytest.approx(0.025, rel=1e-9)
    assert all(a > b for a, b in zip(schedule.rates, schedule.rates[1:], strict=False))
    for step in (0, 30_000, 60_000, 100_000, 150_000):
        assert schedule.expected_fraction(step) == pytest.approx(1 - 0.975**6, abs=1e-12)


def test_expected_fractions_are_those_of_the_documentation():
    """The table of docs/randommask.md, in per cent."""
    single = [expected_fraction((span,), 0.025) for span in (6, 8, 10, 12, 14)]
    assert np.round(np.array(single) * 100, 1).tolist() == [14.1, 18.3, 22.4, 26.2, 29.8]
    schedule = make_schedule("randommask", k=6, total_steps=PAPER_STEPS)
    up_to = [schedule.expected_fraction(step) for step in (0, 30_000, 60_000, 100_000, 150_000)]
    assert np.round(np.array(up_to) * 100, 1).tolist() == [14.1, 16.2, 18.3, 20.2, 22.2]


def test_the_control_arms_have_one_phase():
    assert make_schedule("fixed", k=6, total_steps=9) == MaskSchedule((9,), ((6,),), (0.025,))
    assert make_schedule("fixed", k=6, total_steps=9, fixed_span=14).spans == ((14,),)
    assert make_schedule("token", k=1, total_steps=9) == MaskSchedule((9,), ((1,),), (0.15,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "random"}, "masking.policy 'random' must be one of randommask, .* --masking"),
        ({"draw": "min"}, "masking.draw 'min' must be one of uniform, max"),
        ({"phase_ends": [5, 5, 9]}, r"phase_ends \[5, 5, 9\] must be positive and increasing"),
        ({"phase_ends": [0, 9]}, "must be positive and increasing"),
        ({"phase_ends": [0.5, 2.5]}, "must be whole steps, or fractions that end with 1"),
        ({"phase_ends": [5, 9], "phase_spans": [6]}, "1 phase spans for 2 phase ends"),
        ({"phase_ends": [9], "phase_spans": [0]}, "must be at least 1"),
        ({"policy": "fixed", "fixed_span": -1}, "must be at least 1"),
        ({"centre_rate": 0.0}, r"masking.centre_rate .* must be in \(0, 1\]"),
        ({"policy": "token", "token_rate": 1.5}, r"must be in \(0, 1\]"),
    ],
)
def test_an_invalid_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(**{"policy": "randommask", "k": 6, "total_steps": 10, **settings})
