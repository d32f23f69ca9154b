"""The picture of RandomMask's masks at each phase."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import draws
from dnabert_rm.analysis.figures import new_figure
from dnabert_rm.data.batches import BatchPlan
from dnabert_rm.kmer import MASK_ID, NUM_SPECIAL, vocab_size
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import MaskSchedule

if TYPE_CHECKING:
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
    bits = draws.fold(draws.key(seed, "picture"), np.arange(num_windows * num_tokens))
    ids = (NUM_SPECIAL + draws.below(bits, 4**k)).reshape(num_windows, num_tokens)
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
