"""The picture of RandomMask's masks at each phase."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import NORMAL, new_figure
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.genome.kmer import BASE_ORDER, MASK_ID, NUM_SPECIAL, vocab_size
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.masking.spans import unite_spans
from dnabert_rm.utils import random

if TYPE_CHECKING:
    from matplotlib.figure import Figure
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SEEN, MASKED, RANDOM, KEPT = range(4)
COLOURS = ("#eef1f5", "#b3261e", "#f2a33a", "#2e7d5b")
LABELS = ("seen", "[MASK]", "random k-mer", "predicted, but unchanged")


def mask_kinds(
    schedule: MaskSchedule, step: int, *, k: int, num_windows: int, num_tokens: int, replacement: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What becomes of every token of some windows of random k-mers at a step.

    Returns kinds (num_windows, num_tokens) int64, `SEEN` … `KEPT`, widest span last, and the spans (num_windows,).
    """
    bits = random.fold(random.key(seed, "picture"), np.arange(num_windows * num_tokens))
    ids = (NUM_SPECIAL + random.below(bits, 4**k)).reshape(num_windows, num_tokens)
    plan = BatchPlan.constant(num_windows)
    collate = RandomMaskCollator(schedule, plan.step_of, vocab_size(k), seed, replacement=replacement)
    batch = collate.mask(plan.first_sample(step) + np.arange(num_windows), ids)
    shown, labels = batch.input_ids[:, 1:-1], batch.labels()[:, 1:-1]
    kinds = np.where(shown == MASK_ID, MASKED, np.where(shown == ids, KEPT, RANDOM))
    order = np.argsort(batch.span, kind="stable")
    return np.where(labels == IGNORE, SEEN, kinds)[order], batch.span[order]


def masks_figure(
    schedule: MaskSchedule,
    *,
    k: int = 6,
    num_windows: int = 20,
    num_tokens: int = 254,
    replacement: str = "token",
    seed: int = 42,
) -> Figure:
    """A picture with one panel a phase, a row a window and a column a token. `ConfigError` without matplotlib."""
    phases = [phase for phase in enumerate(pairwise((0, *schedule.phase_ends))) if phase[1][0] < phase[1][1]]
    figure = new_figure(11, 0.5 + 1.35 * len(phases))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    panels = np.atleast_1d(figure.subplots(len(phases), 1, sharex=True))
    for panel, (number, (first, end)) in zip(panels, phases, strict=True):
        settings = {"k": k, "num_windows": num_windows, "num_tokens": num_tokens}
        kinds, span = mask_kinds(schedule, (first + end) // 2, replacement=replacement, seed=seed, **settings)
        colours = ListedColormap(COLOURS)
        panel.imshow(kinds, cmap=colours, vmin=0, vmax=len(COLOURS) - 1, aspect="auto", interpolation="nearest")
        spans = ", ".join(map(str, schedule.spans[number]))
        expected = schedule.expected_fraction(first)
        title = f"phase {number + 1}: steps {first:,} to {end - 1:,}, spans {spans}; {expected:.1%} of tokens masked"
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_yticks([0, num_windows - 1], [f"span {span[0]}", f"span {span[-1]}"], fontsize=7)
    panels[-1].set_xlabel("token of the window", fontsize=9)
    patches = [Patch(facecolor=colour, label=label) for colour, label in zip(COLOURS, LABELS, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    return figure


NUM_BASES = 40
_SEEN = "#c9d3e0"
"""Darker than in the picture of masks, where seen tokens are the ground."""


def hidden_bases(masked: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Bases that no seen token covers.

    Args: `masked` (num_tokens,) bool, token i covers bases i … i + k - 1. Returns (num_tokens + k - 1,) bool. A
    stretch of m masked tokens inside a window hides m - k + 1 bases, or none where m < k.
    """
    seen = np.zeros(len(masked) + k - 1, bool)
    for token in np.flatnonzero(~masked):
        seen[token : token + k] = True
    return ~seen


def hidden_figure(spans: Sequence[int], *, k: int = 6, seed: int = 42) -> Figure:
    """A panel a span: one masked stretch, its tokens as bars below the bases. `ConfigError` without matplotlib."""
    letters = np.array(list(BASE_ORDER))[
        random.below(random.fold(random.key(seed, "picture"), np.arange(NUM_BASES)), 4)
    ]
    centre = np.zeros((1, NUM_BASES - k + 1), bool)
    centre[0, (NUM_BASES - k) // 2] = True
    figure = new_figure(11, 0.3 + (0.8 + 0.16 * k) * len(spans))
    for panel, span in zip(np.atleast_1d(figure.subplots(len(spans), 1)), spans, strict=True):
        masked = unite_spans(centre, np.array([span]))[0]
        _draw(panel, letters, masked, k)
        number = int(hidden_bases(masked, k).sum())
        bases = "base that no seen token covers" if number == 1 else "bases that no seen token covers"
        panel.set_title(f"span {span}: {span} tokens masked, {number} {bases}", fontsize=NORMAL, loc="left")
    return figure


def _draw(panel: Axes, letters: NDArray[np.str_], masked: NDArray[np.bool_], k: int) -> None:
    for base, (letter, is_hidden) in enumerate(zip(letters, hidden_bases(masked, k), strict=True)):
        style: dict[str, Any] = {}
        if is_hidden:
            style = {"color": "white", "bbox": {"facecolor": COLOURS[MASKED], "edgecolor": "none", "pad": 2}}
        panel.text(base + 0.5, 0, letter, ha="center", va="center", fontsize=10, family="monospace", **style)
    tokens = np.arange(len(masked))
    # Token i starts at base i: k rows are enough for no two to touch.
    panel.barh(
        1 + tokens % k, k - 0.25, left=tokens + 0.12, height=0.62, color=np.where(masked, COLOURS[MASKED], _SEEN)
    )
    panel.set(xlim=(0, len(letters)), ylim=(k + 0.6, -0.7))
    panel.axis("off")
