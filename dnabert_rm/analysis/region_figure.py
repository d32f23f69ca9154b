"""Heat map of all single-base variants of a region, with a logo of the mean effect at each base."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.analysis.figures import NORMAL, SMALL, new_figure, save_figure
from dnabert_rm.inference.output_files import read_text
from dnabert_rm.utils.files import atomic_file

BASES = "ACGT"
BASE_COLOURS = dict(zip(BASES, ("#009E73", "#0072B2", "#E69F00", "#D55E00"), strict=True))
"""The usual hues of sequence logos (green, blue, orange, red), in Okabe and Ito's palette."""
LINE_BASES = 80
"""Bases per line of the picture."""
_NEUTRAL = {"marginal": math.log(1 / 4)}
"""Score of a variant without effect, where it is not 0: the likelihood of a base of which nothing is known."""
_TITLES = {
    "log-ratio": "log P(alt) − log P(ref)",
    "marginal": "log P(alt)",
    "embedding": "1 − cosine similarity",
    "embedding-l2": "Euclidean distance",
}
_NO_SCORE = "#d9d9d9"
_BASE_INCHES = 0.15
_LINE_INCHES = 1.9


@dataclass(frozen=True)
class RegionScores:
    """Scores of a region of N bases."""

    contig: str
    start: int
    """First position, from 1."""
    bases: str
    """The N bases of the genome."""
    scores: NDArray[np.float64]
    """(4, N) scores by alternative A, C, G, T; NaN for the reference base and without a score."""


def read_region_scores(table: Path) -> RegionScores:
    """Read the table that `score-variants --region` writes."""
    with read_text(table) as stream:
        rows = list(csv.DictReader(stream))
    start = int(rows[0]["pos"])
    bases = {int(row["pos"]): row["ref"] for row in rows}
    scores = np.full((4, len(bases)), np.nan)
    for row in rows:
        if row["score"]:
            scores[BASES.index(row["alt"]), int(row["pos"]) - start] = float(row["score"])
    return RegionScores(rows[0]["chrom"], start, "".join(bases[position] for position in sorted(bases)), scores)


def mean_effects(scores: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """Return the mean effect of the variants at each base, shape (N,), from scores of shape (4, N).

    A positive effect means that the model prefers the reference base. For a likelihood this is the neutral score minus
    the mean score, and for a distance the mean score. The effect is 0 without scores.
    """
    counts = (~np.isnan(scores)).sum(axis=0)
    means = np.where(counts > 0, np.nansum(scores, axis=0) / np.maximum(counts, 1), _NEUTRAL.get(rule, 0.0))
    return means if rule.startswith("embedding") else _NEUTRAL.get(rule, 0.0) - means


def draw_region(table: Path, picture: Path, rule: str) -> None:
    """Draw the picture of a table of scores. `rule` is the score's name. Raise `DataError` if writing fails."""
    figure = region_figure(read_region_scores(table), rule)
    # The temporary name keeps its ending, which chooses the format.
    with atomic_file(picture, picture.with_name(f".{picture.stem}.tmp{picture.suffix}")) as temporary:
        save_figure(figure, temporary)


def region_figure(region: RegionScores, rule: str) -> Any:
    """Return a figure with a logo and a heat map for each `LINE_BASES` bases."""
    num_lines = math.ceil(len(region.bases) / LINE_BASES)
    width = min(len(region.bases), LINE_BASES) if num_lines == 1 else LINE_BASES
    figure = new_figure(max(5.0, 1.6 + _BASE_INCHES * width), 0.5 + _LINE_INCHES * num_lines)
    axes = figure.subplots(2 * num_lines, 1, squeeze=False, height_ratios=[1.2, 1] * num_lines)[:, 0]
    effects = mean_effects(region.scores, rule)
    limits = (min(0.0, float(effects.min())), max(0.0, float(effects.max())))
    margin = 0.05 * (limits[1] - limits[0]) or 1.0
    colours = _colour_scale(region.scores, rule)
    for line in range(num_lines):
        start = line * LINE_BASES
        part = slice(start, min(start + LINE_BASES, len(region.bases)))
        logo, heat = axes[2 * line : 2 * line + 2]
        _draw_logo(logo, region.bases[part], effects[part])
        logo.set_ylim(limits[0] - margin, limits[1] + margin)
        image = _draw_heat_map(heat, region.bases[part], region.scores[:, part], colours)
        for each in (logo, heat):
            each.set_xlim(-0.5, width - 0.5)
        _label_positions(heat, region.start + start, part.stop - part.start)
    axes[0].set_title(
        f"{region.contig}:{region.start:,}-{region.start + len(region.bases) - 1:,}", fontsize=NORMAL, loc="left"
    )
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.01, aspect=max(12, 12 * num_lines))
    if rule == "marginal":
        bar.ax.set_ylim(top=min(0.0, bar.ax.get_ylim()[1]))  # log P is at most 0
    bar.set_label(_TITLES[rule], fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _colour_scale(scores: NDArray[np.float64], rule: str) -> dict[str, Any]:
    """Return the colour map and its normalisation: diverging for likelihoods, sequential for distances."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    known = scores[~np.isnan(scores)]
    if rule.startswith("embedding"):
        colours, low, high = "viridis", 0.0, float(known.max(initial=0.0)) or 1.0
    else:
        neutral = _NEUTRAL.get(rule, 0.0)
        extent = float(np.abs(known - neutral).max(initial=0.0)) or 1.0
        colours, low, high = "RdBu", neutral - extent, neutral + extent
    return {"cmap": colormaps[colours].with_extremes(bad=_NO_SCORE), "norm": Normalize(low, high)}


def _draw_heat_map(axes: Any, bases: str, scores: NDArray[np.float64], colours: dict[str, Any]) -> Any:
    image = axes.imshow(np.ma.masked_invalid(scores), aspect="auto", interpolation="nearest", **colours)
    references = [(i, BASES.index(base)) for i, base in enumerate(bases) if base in BASES]
    if references:
        axes.scatter(*zip(*references, strict=True), s=7, color="black", linewidths=0)
    axes.set_yticks(range(4), list(BASES), fontsize=SMALL)
    axes.set_yticks(np.arange(3) + 0.5, minor=True)
    axes.set_xticks(np.arange(len(bases) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("alternative", fontsize=SMALL)
    return image


def _label_positions(axes: Any, first: int, num_bases: int) -> None:
    """Label every tenth position, and the first one if there is no other nearby."""
    positions = [first + i for i in range(num_bases) if (first + i) % 10 == 0]
    if not positions or positions[0] - first >= 8:
        positions.insert(0, first)
    axes.set_xticks([position - first for position in positions], [f"{position:,}" for position in positions])
    axes.tick_params(axis="x", labelsize=SMALL)


def _draw_logo(axes: Any, bases: str, effects: NDArray[np.float64]) -> None:
    """Draw each reference base as a letter of the height of the effect, upside down below the axis if negative."""
    from matplotlib.patches import PathPatch
    from matplotlib.transforms import Affine2D

    glyphs = {base: _unit_letter(base) for base in set(bases) & set(BASES)}
    for i, (base, effect) in enumerate(zip(bases, effects.tolist(), strict=True)):
        if base in glyphs and effect:
            # A negative height turns the letter upside down.
            place = Affine2D().scale(0.92, effect).translate(i - 0.46, 0)
            axes.add_patch(PathPatch(place.transform_path(glyphs[base]), color=BASE_COLOURS[base], linewidth=0))
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_ylabel("mean effect", fontsize=SMALL)


def _unit_letter(letter: str) -> Any:
    """Return the outline of a letter, scaled to the unit square."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    outline = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = outline.get_extents()
    return Affine2D().translate(-box.x0, -box.y0).scale(1 / box.width, 1 / box.height).transform_path(outline)
