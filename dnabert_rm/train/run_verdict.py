"""Verdict on a pretraining run: how good it is, whether it still improves, and what to try. Torch-free.

The rules need only the rows of metrics.jsonl.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dnabert_rm.train.validation_record import (
    GUESSING,
    GUESSING_BITS,
    KMER_FREQUENCIES,
    NON_OVERLAPPING,
    bases_text,
    bits_lines,
    compared_bases,
    curve_text,
    markov_bits,
    markov_half_width,
    markov_name,
    markov_order,
    model_bits,
    narrowest_curve,
    validation_of,
)

Trend = Literal["falling", "flat", "rising", "unclear", "unknown"]
Point = tuple[int, float]
"""Number of completed steps at a validation, and the measured value."""
MIN_VALIDATIONS = 4
"""Smallest number of validations for a trend."""
MIN_FITTED = 8
"""Smallest number of validations for a line through the second half of them."""
MIN_CHANGE = 0.001
"""Smallest relative change that counts as falling or rising: 0.1 %, about 0.002 bits per base."""
PLATEAU_SHARE = 0.98
"""On the plateau of single k-mers, the token loss is at least this share of the k-mer frequencies' loss."""
PLATEAU_BASE_ACCURACY = 0.5
"""On the plateau of single k-mers, the base accuracy is also below this value."""
MANY_EPOCHS = 4
"""Number of epochs from which more data are advised beside more steps."""
HOLD_OUT_ADVICE = "hold out data with `python -m data_prep build … --val-fraction 0.01`"


@dataclass(frozen=True)
class Verdict:
    """Verdict on a run. `text` has a few sentences."""

    steps: int
    """Number of completed steps at the last validation, or at the last row if there is no validation."""
    text: str
    hidden_bases: int | None = None
    """Number of hidden bases that `bits` and `lines` are for; None if no bits per base were measured."""
    bits: float | None = None
    """The model's bits per base in the last validation."""
    lines: dict[str, float] = field(default_factory=dict)
    """Bits per base of guessing, composition and the Markov line, keyed by their names."""
    trend: Trend = "unknown"
    on_plateau: bool = False
    """Whether the model has learned no more than the frequencies of single k-mers."""


def judge_run(rows: Sequence[Mapping[str, Any]], first_validation: int | None = None) -> Verdict:
    """Return the verdict on a run.

    Args:
        rows: Rows of metrics.jsonl, at least those with a validation, in order of their steps.
        first_validation: Steps before the first validation, 0 for a run without any; None if unknown.
    """
    validated = [row for row in rows if validation_of(row)]
    if not validated:
        return _not_validated(rows[-1]["step"] + 1 if rows else 0, first_validation)
    last = validated[-1]
    validation, steps = validation_of(last), last["step"] + 1
    hidden, order = compared_bases(validation), markov_order(validation)
    points = _compared_points(validated)
    trend, on_plateau = trend_of(points), is_on_plateau(validation)
    if hidden is None:
        finding = f"No bits per base are recorded{_loss_text(validation)} after {steps:,} steps."
        advice = _advice(last, trend, len(points), is_below_markov=True)
        return Verdict(steps, f"{finding} {advice}", trend=trend, on_plateau=on_plateau)
    bits, lines = model_bits(validation)[hidden], bits_lines(validation, hidden)
    if not math.isfinite(bits):
        finding = f"{bits} bits per base at {bases_text(hidden)} after {steps:,} steps: the model's outputs overflow."
        return Verdict(
            steps, f"{finding} Start again from an earlier checkpoint, with a lower --lr.", hidden, bits, lines
        )
    half = None if order is None else markov_half_width(validation, order, hidden)
    comparison = _comparison(bits, lines, order, half)
    finding = f"{bits:.3f} bits per base at {bases_text(hidden)} after {steps:,} steps, {comparison}."
    if validation.get(NON_OVERLAPPING):
        finding += " Its tokens don't overlap, so more bases are hidden: compare it with such runs only."
    if order is None or bits - lines[markov_name(order)] <= (half or 0):
        finding += _behind_text(validation, hidden)
    is_below_markov = order is None or bits < lines[markov_name(order)] - (half or 0)
    advice = _advice(last, trend, len(points), is_below_markov=is_below_markov)
    return Verdict(steps, f"{finding} {advice}", hidden, bits, lines, trend, on_plateau)


def _not_validated(steps: int, first_validation: int | None) -> Verdict:
    if first_validation and steps < first_validation:
        text = f"No validation yet: the first one is after {first_validation:,} steps."
    elif first_validation == 0:
        text = "No validation, because validation.every is 0: set --validation.every above 0 to judge the run."
    else:
        text = f"No validation, so the run can't be judged: {HOLD_OUT_ADVICE}."
    return Verdict(steps, text)


def _compared_points(validated: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the bits of all validations that are comparable with the last one, or else the token losses.

    Bits are comparable if the lines are the same, because then the hidden stretches are, too. A resumed run may have
    other ones. Values that are not finite are left out.
    """
    last = validation_of(validated[-1])
    found = [(row["step"] + 1, validation_of(row)) for row in validated]
    if (hidden := compared_bases(last)) is not None:
        lines = bits_lines(last, hidden)
        found = [(steps, one) for steps, one in found if bits_lines(one, hidden) == lines]
        points = [(steps, model_bits(one)[hidden]) for steps, one in found if hidden in model_bits(one)]
    else:
        name = (narrowest_curve(last) or ("", {}))[0]
        points = [(steps, one[name]["loss"]) for steps, one in found if name in one]
    return [(steps, value) for steps, value in points if math.isfinite(value)]


def trend_of(points: Sequence[Point]) -> Trend:
    """Return whether the values fall in the second half of the validations, by a straight line through them.

    The trend is "flat" if the line changes by 0.1 % or less over a quarter of the steps that the validations cover.
    Otherwise it is "falling" or "rising" if the slope is significant at the 5 % level of a t test, and "unclear" if it
    is not. With four to seven validations the last two are compared, without a test. With fewer the trend is "unknown".
    """
    if len(points) < MIN_VALIDATIONS:
        return "unknown"
    points = _spaced(points)
    half = points[-(len(points) // 2) :] if len(points) >= MIN_FITTED else points[-2:]
    slope, error = _line(half)
    covered = (points[-1][0] - points[0][0]) * len(points) / (len(points) - 1)
    change = slope * covered / 4
    if abs(change) <= MIN_CHANGE * abs(statistics.fmean(value for _, value in half)):
        return "flat"
    if abs(slope) <= error:
        return "unclear"
    return "falling" if slope < 0 else "rising"


def _spaced(points: Sequence[Point]) -> list[Point]:
    """Leave out the validation before the last one if there are few steps between them.

    The last step is validated in any case, perhaps soon after a regular validation. Their difference is noise.
    """
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    is_close = len(gaps) > 1 and gaps[-1] < statistics.median(gaps) / 2
    return [*points[:-2], points[-1]] if is_close else list(points)


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Return the slope of the least-squares line per step, and half of its 95 % interval: 0 for two points."""
    steps, values = zip(*points, strict=True)
    slope, offset = statistics.linear_regression(steps, values)
    freedom = len(points) - 2
    if not freedom:
        return slope, 0.0
    from scipy.stats import t

    residuals = sum((value - offset - slope * step) ** 2 for step, value in points)
    spread = statistics.pvariance(steps) * len(points)
    return slope, float(t.ppf(0.975, freedom)) * math.sqrt(residuals / freedom / spread)


def is_on_plateau(validation: Mapping[str, Any]) -> bool:
    """Return whether a model has learned no more than the frequencies of single k-mers.

    It has learned more if its token loss at the narrowest span is over 2 % below that of the frequencies, or if it
    predicts at least half of the masked bases.
    """
    curve, frequencies = narrowest_curve(validation), validation.get(KMER_FREQUENCIES)
    if curve is None or frequencies is None:
        return False
    accuracy = curve[1].get("base_accuracy")
    is_low = accuracy is not None and accuracy < PLATEAU_BASE_ACCURACY
    return is_low and curve[1]["loss"] >= PLATEAU_SHARE * frequencies


def _comparison(bits: float, lines: Mapping[str, float], order: int | None, half: float | None) -> str:
    """Return which lines a model is better than, e.g. "better than guessing (2) and composition (1.987)".

    `half` is half of the 95 % interval of the difference from the Markov line, if it is known.
    """
    markov = None if order is None else markov_name(order)
    shown = {
        name: f"{name} ({GUESSING_BITS:g})" if name == GUESSING else f"{name} ({value:.3f})"
        for name, value in lines.items()
    }
    is_close = markov is not None and half is not None and abs(bits - lines[markov]) <= half
    better = [shown[name] for name, value in lines.items() if bits < value and not (name == markov and is_close)]
    not_better = [shown[name] for name, value in lines.items() if bits >= value and name != markov]
    parts = [f"no better than {_joined(not_better)}"] if not_better else []
    if markov is not None and is_close:
        difference = f"{bits - lines[markov]:+z.3f} ± {half:.3f}"
        parts.append(f"not clearly different from {markov} ({lines[markov]:.3f}, difference {difference})")
    elif markov is not None and bits >= lines[markov]:
        ours, counts = ("no better", "as well") if bits == lines[markov] else ("worse", "better")
        parts.append(f"{ours} than {shown[markov]}: a table of counts predicts {counts}")
    text = " and ".join(parts)
    if not better:
        return text
    return f"better than {_joined(better)}" + (f", but {text}" if text else "")


def _loss_text(validation: Mapping[str, Any]) -> str:
    if (curve := narrowest_curve(validation)) is None:
        return ""
    return f"; the held-out loss is {curve[1]['loss']:.3f} nats per masked token ({curve_text(curve[0])})"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _behind_text(validation: Mapping[str, Any], hidden: int) -> str:
    """Return a sentence on the numbers of hidden bases at which a chain is clearly better, or nothing.

    For `hidden` itself the Markov line is left out, because the comparison names it. Another chain can be clearly
    better although the line, which has fewer bits, is not: its interval can be wide. Without intervals, as in runs of
    earlier releases and with a single region, there is no sentence.
    """
    line = (hidden, markov_order(validation))

    def is_clearly_better(order: int, number: int, difference: float) -> bool:
        half = markov_half_width(validation, order, number)
        return half is not None and difference > half and (number, order) != line

    chains = markov_bits(validation).items()
    behind = [
        number
        for number, bits in model_bits(validation).items()
        if any(is_clearly_better(order, number, bits - chain[number]) for order, chain in chains if number in chain)
    ]
    if not behind:
        return ""
    numbers = _joined([*map(str, behind[:-1]), bases_text(behind[-1])])
    return f" With {numbers} a Markov chain is clearly better."


def _or_more_data(last: Mapping[str, Any]) -> str:
    """Return more advice for a run that has read its data several times. `last` is a metrics row."""
    epoch = last.get("epoch")
    return "" if epoch is None or epoch < MANY_EPOCHS else f", or more data (these were read {epoch:.0f} times)"


def _advice(last: Mapping[str, Any], trend: Trend, num_validations: int, *, is_below_markov: bool) -> str:
    """Return the sentence on the trend, with the one thing to try that is most likely to help.

    `last` is the metrics row of the last validation.
    """
    validation = validation_of(last)
    curve = narrowest_curve(validation)
    if curve is not None and is_on_plateau(validation):
        return (
            f"The model is on the plateau of single k-mers (token loss {curve[1]['loss']:.3f} at "
            f"{curve_text(curve[0])}, k-mer frequencies {validation[KMER_FREQUENCIES]:.3f}): train for more steps, or "
            "try the settings in docs/randommask.md#the-plateau."
        )
    if trend == "unknown":
        return f"Too few validations ({num_validations}) for a trend: train longer, or lower --validation.every."
    if trend == "unclear":
        return "It is not clear whether the curve still falls: train longer, or lower --validation.every."
    if trend == "rising":
        is_first_epoch = last.get("epoch") is not None and last["epoch"] <= 1
        if is_first_epoch:
            return "The curve rises within the first epoch, so training is unstable: lower --lr."
        return "The curve rises, so the model overfits its training data: stop earlier, or train on more data."
    if trend == "falling":
        return f"The curve still falls: try a new run with more --steps{_or_more_data(last)}."
    if is_below_markov:
        return "The curve no longer falls: try a larger model or more data."
    return "The curve no longer falls: try a new run with more --steps."
