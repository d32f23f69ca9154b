"""The picture of why spans have to grow: which bases a masked stretch of overlapping k-mers really hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm import draws
from dnabert_rm.analysis.figures import NORMAL, new_figure
from dnabert_rm.analysis.masks import COLOURS, MASKED
from dnabert_rm.kmer import BASE_ORDER
from dnabert_rm.masking.spans import unite_spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    letters = np.array(list(BASE_ORDER))[draws.below(draws.fold(draws.key(seed, "picture"), np.arange(NUM_BASES)), 4)]
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
