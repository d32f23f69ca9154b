"""Figures of RandomMask: the masks of each phase, and the bases that one masked span hides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import NORMAL, SMALL, new_figure
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.genome.kmer import BASE_ORDER, MASK_ID, NUM_SPECIAL, vocab_size
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.masking.spans import unite_spans
from dnabert_rm.utils import random

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEN, MASKED, RANDOM, KEPT = range(4)
COLOURS = ("#eef1f5", "#b3261e", "#f2a33a", "#2e7d5b")
LABELS = ("seen", "[MASK]", "random k-mer", "predicted, but unchanged")
NUM_BASES = 40
"""Number of bases in each panel of the figure of hidden bases."""
_SEEN_BAR = "#c9d3e0"
"""Colour of the bars of seen tokens: darker than the background colour `COLOURS[SEEN]`."""


def masks_figure(
    schedule: MaskSchedule,
    *,
    k: int = 6,
    num_windows: int = 20,
    num_tokens: int = 254,
    replacement: str = "token",
    seed: int = 42,
) -> Figure:
    """Draw the masks of random windows with one panel per masking phase, one row per window, one column per token.

    Raise `ConfigError` if matplotlib is not installed.
    """
    ranges = enumerate(pairwise((0, *schedule.phase_ends)), 1)
    phases = [(number, first, end) for number, (first, end) in ranges if first < end]
    figure = new_figure(11, 0.5 + 1.35 * len(phases))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ListedColormap(COLOURS)
    panels = np.atleast_1d(figure.subplots(len(phases), 1, sharex=True))
    for panel, (number, first, end) in zip(panels, phases, strict=True):
        kinds, span = mask_kinds(
            schedule,
            (first + end) // 2,
            k=k,
            num_windows=num_windows,
            num_tokens=num_tokens,
            replacement=replacement,
            seed=seed,
        )
        panel.imshow(kinds, cmap=colours, vmin=0, vmax=len(COLOURS) - 1, aspect="auto", interpolation="nearest")
        spans = ", ".join(map(str, schedule.spans[number - 1]))
        expected = schedule.expected_fraction(first)
        title = f"phase {number}: steps {first:,} to {end - 1:,}, spans {spans}; {expected:.1%} of tokens masked"
        panel.set_title(title, fontsize=NORMAL, loc="left")
        panel.set_yticks([0, num_windows - 1], [f"span {span[0]}", f"span {span[-1]}"], fontsize=7)
    panels[-1].set_xlabel("token of the window (one row per window)", fontsize=NORMAL)
    patches = [Patch(facecolor=colour, label=label) for colour, label in zip(COLOURS, LABELS, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=SMALL, frameon=False)
    return figure


def mask_kinds(
    schedule: MaskSchedule, step: int, *, k: int, num_windows: int, num_tokens: int, replacement: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mask windows of random k-mers in the same way as training does at `step`.

    Return the kind of each token, (num_windows, num_tokens) int64, and the mask span of each window, (num_windows,).
    The windows are sorted by span. The kinds are `SEEN` (not predicted), `MASKED` (predicted from [MASK]), `RANDOM`
    (predicted from a random k-mer) and `KEPT` (predicted, but unchanged).
    """
    bits = random.fold(random.key(seed, "picture"), np.arange(num_windows * num_tokens))
    ids = (NUM_SPECIAL + random.below(bits, 4**k)).reshape(num_windows, num_tokens)
    plan = BatchPlan.constant(num_windows)
    collate = RandomMaskCollator(schedule, plan.step_of, vocab_size(k), seed, replacement=replacement)
    batch = collate.mask(plan.first_sample(step) + np.arange(num_windows), ids)
    inputs, labels = batch.input_ids[:, 1:-1], batch.labels()[:, 1:-1]
    kinds = np.where(inputs == MASK_ID, MASKED, np.where(inputs == ids, KEPT, RANDOM))
    order = np.argsort(batch.span, kind="stable")
    return np.where(labels == IGNORE, SEEN, kinds)[order], batch.span[order]


def hidden_figure(spans: Sequence[int], *, k: int = 6, seed: int = 42) -> Figure:
    """Draw the bases that one masked span hides, with one panel per span length.

    Each token is drawn as a bar below the k bases of its k-mer. Raise `ConfigError` if matplotlib is not installed.
    """
    bits = random.fold(random.key(seed, "picture"), np.arange(NUM_BASES))
    letters = np.array(list(BASE_ORDER))[random.below(bits, 4)]
    centre = np.zeros((1, NUM_BASES - k + 1), bool)
    centre[0, (NUM_BASES - k) // 2] = True
    figure = new_figure(11, 0.3 + (0.8 + 0.16 * k) * len(spans))
    for panel, span in zip(np.atleast_1d(figure.subplots(len(spans), 1)), spans, strict=True):
        masked = unite_spans(centre, np.array([span]))[0]
        _draw_tokens(panel, letters, masked, k)
        num_hidden = int(hidden_bases(masked, k).sum())
        title = f"span {span}: {num_hidden} {'base' if num_hidden == 1 else 'bases'} hidden by {span} masked tokens"
        panel.set_title(title, fontsize=NORMAL, loc="left")
    return figure


def hidden_bases(masked: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Return whether each base of a window is hidden, as bool of shape (num_tokens + k - 1,).

    `masked` has one bool per token. A base is hidden if all k-mers that cover the base are masked. Token i covers bases
    i … i + k - 1. A span of m consecutive masked tokens inside a window hides max(0, m - k + 1) bases.
    """
    seen = np.zeros(len(masked) + k - 1, bool)
    for token in np.flatnonzero(~masked):
        seen[token : token + k] = True
    return ~seen


def _draw_tokens(panel: Axes, letters: NDArray[np.str_], masked: NDArray[np.bool_], k: int) -> None:
    for base, (letter, is_hidden) in enumerate(zip(letters, hidden_bases(masked, k), strict=True)):
        style: dict[str, Any] = {}
        if is_hidden:
            style = {"color": "white", "bbox": {"facecolor": COLOURS[MASKED], "edgecolor": "none", "pad": 2}}
        panel.text(base + 0.5, 0, letter, ha="center", va="center", fontsize=10, family="monospace", **style)
    tokens = np.arange(len(masked))
    # Token i starts at base i, so with k rows no two bars touch.
    colours = np.where(masked, COLOURS[MASKED], _SEEN_BAR)
    panel.barh(1 + tokens % k, k - 0.25, left=tokens + 0.12, height=0.62, color=colours)
    panel.set(xlim=(0, len(letters)), ylim=(k + 0.6, -0.7))
    panel.axis("off")
