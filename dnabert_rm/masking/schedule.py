"""RandomMask's schedule: the span lengths of each step, and the probability that a token is the centre of a span.

All functions are pure functions of integers. Source: "Rethinking the BERT-like Pretraining for DNA Sequences" (arXiv
2310.07644). Details that the paper leaves open are settings, described in `docs/randommask.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dnabert_rm.config import RunConfig
from dnabert_rm.utils.errors import ConfigError

POLICIES = ("randommask", "randommask-matched", "fixed", "token")
DRAWS = ("uniform", "max")
PAPER_STEPS = 480_000
PAPER_PHASE_ENDS = (30_000, 60_000, 100_000, 150_000, 480_000)
SPAN_STEP = 2


@dataclass(frozen=True)
class MaskSchedule:
    """Masking phases of a training run.

    Phase i (0-based) ends before step `phase_ends[i]`, except that the last phase also covers all later steps. In a
    short run a phase may be empty.

    In phase i, the span length of a window is drawn uniformly from `spans[i]`. Each token is the centre of a masked
    span with probability `rates[i]`.
    """

    phase_ends: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.phase_ends) == len(self.spans) == len(self.rates) > 0:
            raise ConfigError(
                "masking.phase_ends and masking.phase_spans must have the same length and at least one entry"
            )
        assert all(a <= b for a, b in pairwise((0, *self.phase_ends))), self.phase_ends
        if not all(spans and min(spans) >= 1 for spans in self.spans):
            raise ConfigError("masking.phase_spans and masking.fixed_span must be at least 1")
        if not all(0 < rate <= 1 for rate in self.rates):
            raise ConfigError(f"masking.centre_rate and masking.token_rate {list(self.rates)} must be in (0, 1]")

    @property
    def num_phases(self) -> int:
        """Number of phases."""
        return len(self.phase_ends)

    def phase_of(self, steps: ArrayLike) -> NDArray[np.int64]:
        """Return the phase (1 … num_phases) of each step, shaped like `steps`. Phase 2 begins at `phase_ends[0]`."""
        found = np.searchsorted(np.asarray(self.phase_ends), np.asarray(steps), side="right")
        return np.minimum(found, self.num_phases - 1) + 1

    def max_span(self, step: int) -> int:
        """Return the largest possible span length of a window at this step."""
        return max(self.spans[int(self.phase_of(step)) - 1])

    def expected_fraction(self, step: int) -> float:
        """Return the expected masked fraction in a step, ignoring that spans are cut at the ends of windows."""
        phase = int(self.phase_of(step)) - 1
        return expected_fraction(self.spans[phase], self.rates[phase])


def expected_fraction(spans: Sequence[int], rate: float) -> float:
    """Return the expected fraction of masked tokens: the mean of 1 - (1 - rate)^m over all span lengths m in `spans`.

    Each token is the centre of a span with probability `rate`. For span length m, a token is masked if at least one of
    the m tokens around it is a centre.
    """
    return float(np.mean(1 - (1 - rate) ** np.asarray(spans, dtype=np.float64)))


def scaled_phase_ends(total_steps: int) -> tuple[int, ...]:
    """Return the paper's phase ends, scaled to `total_steps`: 6.25, 12.5, 20.83, 31.25 and 100 % of the steps."""
    return tuple(round(Fraction(end, PAPER_STEPS) * total_steps) for end in PAPER_PHASE_ENDS)


def resolve_phase_ends(phase_ends: Sequence[float], total_steps: int) -> tuple[int, ...]:
    """Return phase ends in steps. Raises `ConfigError` if `phase_ends` is invalid.

    If `phase_ends` is empty, use the paper's values, scaled to `total_steps`. If the last end is 1, all given ends are
    fractions of `total_steps`. If the last end is not 1, all given ends are steps.
    """
    if not phase_ends:
        return scaled_phase_ends(total_steps)
    if any(a >= b for a, b in pairwise((0, *phase_ends))):
        raise ConfigError(f"masking.phase_ends {list(phase_ends)} must be positive and increasing; change --phase-ends")
    if all(0 < end <= 1 for end in phase_ends) and phase_ends[-1] == 1:
        return tuple(round(end * total_steps) for end in phase_ends)
    if any(end != int(end) for end in phase_ends):
        raise ConfigError(
            f"masking.phase_ends {list(phase_ends)} must be whole steps, or fractions that end with 1; "
            "change --phase-ends"
        )
    return tuple(int(end) for end in phase_ends)


def make_schedule(
    policy: str,
    *,
    k: int,
    total_steps: int,
    phase_ends: Sequence[float] = (),
    phase_spans: Sequence[int] = (),
    centre_rate: float = 0.025,
    draw: str = "uniform",
    fixed_span: int = 0,
    token_rate: float = 0.15,
) -> MaskSchedule:
    """Return the mask schedule of a policy. Raises `ConfigError` for invalid settings.

    Args:
        policy: One of `POLICIES`.
        k: Bases per k-mer.
        total_steps: Number of steps in the training run.
        phase_ends: See `resolve_phase_ends`.
        phase_spans: Upper limit M of the spans of each phase; by default k, k + 2, k + 4 …
        centre_rate: Probability that a token is the centre of a masked span.
        draw: "uniform" draws a span length from {k, k + 2, … M}; "max" always takes M.
        fixed_span: Span length of policy "fixed"; 0 means k.
        token_rate: Masked fraction of policy "token".
    """
    if policy not in POLICIES:
        raise ConfigError(f"masking.policy {policy!r} must be one of {', '.join(POLICIES)}; change --masking")
    if draw not in DRAWS:
        raise ConfigError(f"masking.draw {draw!r} must be one of {', '.join(DRAWS)}")
    if policy == "token":
        return MaskSchedule((total_steps,), ((1,),), (token_rate,))
    if policy == "fixed":
        return MaskSchedule((total_steps,), ((fixed_span or k,),), (centre_rate,))
    ends = resolve_phase_ends(phase_ends, total_steps)
    largest = tuple(phase_spans) or tuple(k + SPAN_STEP * phase for phase in range(len(ends)))
    if len(largest) != len(ends):
        raise ConfigError(
            f"{len(largest)} phase spans for {len(ends)} phase ends; pass as many --phase-spans as --phase-ends"
        )
    spans = tuple(_span_choices(k, int(top), draw) for top in largest)
    rates = tuple(centre_rate for _ in spans)
    if policy == "randommask-matched":
        target = expected_fraction(spans[0], centre_rate)
        rates = tuple(_matched_rate(choices, target) for choices in spans)
    return MaskSchedule(ends, spans, rates)


def _span_choices(k: int, largest: int, draw: str) -> tuple[int, ...]:
    """Return the span lengths of one phase: k, k + 2, … up to `largest`.

    If `largest` is below k or `draw` is "max", return `largest` only.
    """
    if draw == "max" or largest <= k:
        return (largest,)
    return tuple(range(k, largest + 1, SPAN_STEP))


def _matched_rate(spans: Sequence[int], target: float) -> float:
    """Return the probability of span centres for which the expected masked fraction is `target`.

    The probability is found by bisection. `spans` are the equally probable span lengths.
    """
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if expected_fraction(spans, middle) < target:
            low = middle
        else:
            high = middle
    return high


def make_mask_schedule(config: RunConfig, k: int | None) -> MaskSchedule:
    """Return the mask schedule for a configuration. `k` is None for BPE.

    Raises `ConfigError` if the policy needs k-mers but `k` is None.
    """
    masking = config.masking
    if k is None and masking.policy != "token":
        raise ConfigError(f"masking.policy {masking.policy!r} needs k-mers; pass --masking token for BPE shards")
    return make_schedule(
        masking.policy,
        k=k or 1,
        total_steps=config.train.steps,
        phase_ends=masking.phase_ends,
        phase_spans=masking.phase_spans,
        centre_rate=masking.centre_rate,
        draw=masking.draw,
        fixed_span=masking.fixed_span,
        token_rate=masking.token_rate,
    )
