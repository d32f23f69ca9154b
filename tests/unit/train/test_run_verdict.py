"""The verdict on a run: comparison with count tables, the trend, and the one thing to try."""

from __future__ import annotations

import numpy as np
import pytest
from validated_rows import rows_of, validation

from dnabert_rm.train.run_verdict import Verdict, is_on_plateau, judge_run, trend_of

FALLING = np.linspace(1.95, 1.84, 8).tolist()
RISING = np.linspace(1.80, 1.84, 8).tolist()
FLAT = [1.95, 1.90, 1.86, 1.85, 1.8405, 1.8401, 1.8400, 1.8400]


def verdict(bits: list[float], epoch: float = 2.0, **options) -> Verdict:
    return judge_run(rows_of([validation(value, **options) for value in bits], epoch=epoch))


def test_a_falling_run_below_its_markov_line() -> None:
    found = verdict(FALLING)
    assert found.text == (
        "1.840 bits per base at 5 hidden bases after 800 steps, better than guessing (2), composition (1.987) and "
        "Markov order 8 (1.930). The curve still falls: try a new run with more --steps."
    )
    assert (found.trend, found.steps, found.hidden_bases, found.bits) == ("falling", 800, 5, pytest.approx(1.84))


def test_a_falling_run_that_has_read_its_data_often_is_told_so() -> None:
    assert verdict(FALLING, epoch=3.9).text.endswith("try a new run with more --steps.")
    assert verdict(FALLING, epoch=4.1).text.endswith(
        "try a new run with more --steps, or more data (these were read 4 times)."
    )


@pytest.mark.parametrize(
    ("bits", "half_width", "sentence"),
    [
        (1.84, 0.004, ""),
        (1.895, None, ""),
        (1.895, 0.004, " With 9 hidden bases a Markov chain is clearly better."),  # 1.945 and 1.940
        (1.895, 0.006, ""),
        (1.912, 0.004, " With 9 hidden bases a Markov chain is clearly better."),
    ],
)
def test_chains_that_are_better_elsewhere_are_named(bits: float, half_width: float | None, sentence: str) -> None:
    text = verdict([bits], half_width=half_width).text
    before, _ = text.split(". Too few validations")
    assert before.endswith(sentence.rstrip(".")) and ("a Markov chain is clearly better" in text) == bool(sentence)


def test_a_line_with_a_wide_interval_does_not_hide_a_clearly_better_chain() -> None:
    found = validation(1.96, markov=1.93, half_width=0.05)
    found["markov_half_width"]["5"]["5"] = 0.01  # 1.94
    text = judge_run(rows_of([found])).text
    assert "not clearly different from Markov order 8 (1.930" in text
    assert "With 5 and 9 hidden bases a Markov chain is clearly better." in text
    found["markov_half_width"]["5"]["5"] = 0.03
    assert "With 9 hidden bases a Markov chain is clearly better." in judge_run(rows_of([found])).text


@pytest.mark.parametrize(
    ("bits", "markov", "comparison"),
    [
        (
            1.95,
            1.93,
            "better than guessing (2) and composition (1.987), but worse than Markov order 8 (1.930): a table",
        ),
        (1.99, 1.93, "better than guessing (2), but no better than composition (1.987) and worse than Markov order 8"),
        (2.01, 1.93, "no better than guessing (2) and composition (1.987) and worse than Markov order 8 (1.930)"),
        (
            1.93,
            1.93,
            "composition (1.987), but no better than Markov order 8 (1.930): a table of counts predicts as well",
        ),
        (1.929, 1.93, "better than guessing (2), composition (1.987) and Markov order 8 (1.930)."),
    ],
)
def test_the_comparison_names_each_line(bits: float, markov: float, comparison: str) -> None:
    text = verdict([bits], markov=markov).text
    assert comparison in text and ("a table of counts predicts better" in text) == (bits > markov)


@pytest.mark.parametrize(
    ("bits", "half_width", "comparison"),
    [
        (
            1.928,
            0.003,
            "better than guessing (2) and composition (1.987), but not clearly different from Markov order 8 (1.930, "
            "difference -0.002 ± 0.003).",
        ),
        (
            1.933,
            0.0031,
            "but not clearly different from Markov order 8 (1.930, difference +0.003 ± 0.003).",
        ),
        (1.926, 0.003, "better than guessing (2), composition (1.987) and Markov order 8 (1.930)."),
        (1.934, 0.003, "but worse than Markov order 8 (1.930): a table of counts predicts better."),
    ],
)
def test_a_difference_within_its_interval_is_not_a_lead(bits: float, half_width: float, comparison: str) -> None:
    assert comparison in verdict([bits], half_width=half_width).text
    advice = "try a new run with more --steps" if bits > 1.93 - half_width else "try a larger model or more data"
    assert advice in verdict([bits] * 8, half_width=half_width).text


def test_one_thing_to_try() -> None:
    assert verdict(FLAT).text.endswith("The curve no longer falls: try a larger model or more data.")
    assert verdict(FLAT, markov=1.83).text.endswith("The curve no longer falls: try a new run with more --steps.")
    assert "overfits its training data: stop earlier" in verdict(RISING).text
    assert verdict(RISING, epoch=0.8).text.endswith("so training is unstable: lower --lr.")
    unclear = verdict([1.96, 1.953, 1.958, 1.943, 1.942, 1.938, 1.96, 1.93])
    assert unclear.trend == "unclear" and "It is not clear whether the curve still falls" in unclear.text
    few = verdict(FALLING[:3])
    assert few.trend == "unknown" and "Too few validations (3) for a trend" in few.text


def test_the_plateau_of_single_kmers_comes_before_the_trend() -> None:
    found = verdict(FALLING, loss=7.33, base_accuracy=0.34)
    assert found.on_plateau and found.trend == "falling"
    assert (
        "The model is on the plateau of single k-mers (token loss 7.330 at span 6, k-mer frequencies 7.353): train for "
        "more steps, or try the settings in docs/randommask.md#the-plateau."
    ) in found.text


@pytest.mark.parametrize(
    ("loss", "base_accuracy", "expected"),
    [(7.36, 0.34, True), (7.21, 0.34, True), (7.20, 0.34, False), (8.24, 0.35, True), (7.33, 0.5, False)],
)
def test_both_sides_of_the_plateaus_bounds(loss: float, base_accuracy: float, expected: bool) -> None:
    """7.353 * 0.98 = 7.206. A model trained on a loss over bases has a token loss above the plateau."""
    assert is_on_plateau(validation(loss=loss, base_accuracy=base_accuracy)) == expected
    assert not is_on_plateau(validation(None, loss=loss, base_accuracy=base_accuracy))
    assert not is_on_plateau({"kmer_frequencies": 7.353})


def trend(values: list[float], every: int = 100) -> str:
    """Return the trend of values that were measured every `every` steps."""
    return trend_of([(every * (number + 1), value) for number, value in enumerate(values)])


def test_a_trend_is_a_line_through_the_second_half() -> None:
    assert trend([9, 9, 2.0, 1.9]) == "falling" and trend([9, 9, 1.9, 2.0]) == "rising"
    assert trend([9, 9, 2.0, 1.9981]) == "flat" and trend([9, 9, 2.0, 1.9979]) == "falling"
    assert trend([2.0, 1.9, 1.8]) == "unknown" == trend([])
    # One outlier in the last quarter is no trend.
    assert trend([2.0] * 15 + [1.9]) == "unclear"
    # README's run: few validations, of which the fourth last is far from the line.
    assert trend([1.9621, 1.9625, 1.9521, 1.9513, 1.9585, 1.9426, 1.9416, 1.9379]) == "unclear"
    # A `mini`: a clear fall is not taken for noise.
    assert trend([1.9883, 1.9646, 1.9706, 1.9611, 1.9630, 1.9548, 1.9534, 1.9485]) == "falling"
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (200, 40))
    assert np.mean([trend((1.9 + one).tolist()) in ("flat", "unclear") for one in noise]) > 0.93
    assert np.mean([trend((1.9 + one / 10).tolist()) == "flat" for one in noise]) > 0.9
    steady = 1.9 - 0.002 * np.arange(40)
    assert np.mean([trend((steady + one).tolist()) == "falling" for one in noise]) > 0.9


def test_a_last_step_soon_after_a_validation_does_not_change_the_trend() -> None:
    """The last step is always validated. With 900 steps, a validation every 112 steps leaves 4."""
    points = [(112 * number, 1.97 - 0.0002 * 112 * number) for number in range(1, 9)]
    assert trend_of(points) == trend_of([*points, (900, 1.7901)]) == "falling"
    few = [(1000 * number, 1.97 - 0.02 * number) for number in range(1, 6)]
    assert trend_of(few) == trend_of([*few, (5050, 1.8695)]) == "falling"
    assert trend_of([(1000, 2.0), (2000, 1.98), (3000, 1.97), (3400, 1.96)]) == "falling"
    # After a resume with other regions, few steps are covered: a small change is not extrapolated to all steps.
    late = [(100_000 + 100 * number, 1.9 + 0.0001 * number) for number in range(8)]
    assert trend_of(late) == "flat"
    # After a resume with other intervals: the slope is per step.
    assert trend_of([(100, 2.0), (200, 1.99), (300, 1.98), (400, 1.97), (1400, 1.9698)]) == "flat"


def test_only_bits_of_the_same_stretches_are_compared() -> None:
    """A resumed run may have other regions, which are harder by 0.035 bits."""
    values = [validation(bits, markov=1.94) for bits in (1.93, 1.92, 1.912, 1.908)] + [validation(1.945, markov=1.975)]
    found = judge_run(rows_of(values))
    assert found.trend == "unknown" and "Too few validations (1) for a trend" in found.text


def test_bits_that_are_not_finite_are_no_trend() -> None:
    text = verdict([1.95, 1.94, 1.93, float("nan")]).text
    assert text.startswith("nan bits per base at 5 hidden bases after 400 steps: the model's outputs overflow.")
    assert "curve" not in text
    assert verdict([1.95, float("nan"), 1.94, 1.93, 1.92]).trend == "falling"


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    assert "difference +0.000 ± 0.003" in verdict([1.92996], half_width=0.003).text


def test_runs_without_bits_are_judged_by_their_held_out_loss() -> None:
    rows = rows_of([validation(None, loss=loss) for loss in (7.0, 6.8, 6.6, 6.4)])
    assert judge_run(rows).text == (
        "No bits per base are recorded; the held-out loss is 6.400 nats per masked token (span 6) after 400 steps. "
        "The curve still falls: try a new run with more --steps."
    )
    # A run that was resumed with a release that measures bits.
    both = [*rows, *rows_of([validation(value) for value in (1.9, 1.8)])]
    assert judge_run(both).trend == "unknown" and judge_run(both).bits == pytest.approx(1.8)


def test_runs_without_a_validation_get_advice() -> None:
    rows = rows_of([None, None])
    assert judge_run(rows, 1000).text == "No validation yet: the first one is after 1,000 steps."
    assert "--validation.every above 0" in judge_run(rows, 0).text
    for every in (None, 100):
        assert "--val-fraction" in judge_run(rows, every).text
    assert judge_run([]).steps == 0 and judge_run(rows).steps == 200


def test_a_run_with_tokens_that_do_not_overlap_is_not_held_against_chains_or_the_plateau() -> None:
    """Such a run hides whole tokens, so the Markov lines and the k-mer frequencies are no comparison."""
    validation = {
        "span_6": {"loss": 8.0, "masked_accuracy": 0.01, "base_accuracy": 0.35},
        "bits_per_base": {"5": 1.95},
        "composition": {"5": 1.96},
        "non_overlapping": True,
    }
    verdict = judge_run([{"step": step, "validation": validation} for step in range(0, 800, 100)])
    assert not verdict.on_plateau and "Markov" not in verdict.text
    assert "more bases are hidden" in verdict.text
