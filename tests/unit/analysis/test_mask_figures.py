"""Figures of masks agree with the collator."""

from __future__ import annotations

import numpy as np
import pytest

from dnabert_rm.analysis.mask_figures import (
    KEPT,
    MASKED,
    RANDOM,
    SEEN,
    hidden_bases,
    hidden_figure,
    mask_kinds,
    masks_figure,
)
from dnabert_rm.cli.main import main
from dnabert_rm.masking.schedule import make_schedule


def test_masked_random_and_kept_tokens_have_the_expected_shares():
    schedule = make_schedule("randommask", k=6, total_steps=480_000)
    kinds, span = mask_kinds(schedule, 300_000, k=6, num_windows=400, num_tokens=500, replacement="token", seed=1)
    shares = np.bincount(kinds.reshape(-1), minlength=4) / kinds.size
    assert shares[SEEN] == pytest.approx(1 - schedule.expected_fraction(300_000), abs=0.01)
    assert shares[[MASKED, RANDOM, KEPT]] / (1 - shares[SEEN]) == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert sorted(set(span)) == [6, 8, 10, 12, 14]
    assert (np.diff(span) >= 0).all()


def test_the_figure_of_masks_is_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["analyze", "masking", "--output", str(tmp_path / "new" / "masks.png")]) == 0
    assert (tmp_path / "new" / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert main(["analyze", "masking", "--output", str(tmp_path / "masks.jpeg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    figure = masks_figure(make_schedule("randommask", k=3, total_steps=3), k=3)
    assert len(figure.axes) == 2  # in 3 steps only two of the five phases have a step


@pytest.mark.parametrize("k", [3, 6])
@pytest.mark.parametrize("span", range(1, 15))
def test_m_masked_tokens_hide_m_minus_k_plus_1_bases(k, span):
    masked = np.zeros(40, bool)
    masked[10 : 10 + span] = True
    hidden = np.flatnonzero(hidden_bases(masked, k))
    assert list(hidden) == list(range(10 + k - 1, 10 + span))  # starting after the last base of the seen tokens


def test_the_figure_of_hidden_bases_counts_them(tmp_path):
    pytest.importorskip("matplotlib")
    titles = [panel.get_title(loc="left") for panel in hidden_figure((6, 14), k=6).axes]
    assert ["1 base " in titles[0], "9 bases " in titles[1]] == [True, True], titles
    assert main(["analyze", "masking", "--view", "hidden", "--output", str(tmp_path / "hidden.png")]) == 0
    assert (tmp_path / "hidden.png").read_bytes().startswith(b"\x89PNG")
