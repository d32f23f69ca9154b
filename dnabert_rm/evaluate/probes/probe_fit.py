"""Linear probes: logistic or ridge regression on fixed features, with everything chosen on dev and test scored once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from dnabert_rm.evaluate.probes.probe_data import Division, ProbeSet

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C for standardized embeddings, from strong to weak regularization."""
ALPHAS = (1e4, 1e3, 1e2, 1e1, 1.0)
"""Values of alpha of the ridge regression for standardized embeddings, from strong to weak regularization."""
MAX_ITERATIONS = 300
"""Limit of L-BFGS iterations per fit."""


@dataclass(frozen=True)
class Fit:
    """The model with the best dev score, and its only score on test."""

    dev: float
    test: float
    choice: dict[str, Any]
    """What was chosen on dev, such as the layer and the regularization."""
    by_candidate: list[dict[str, Any]] = field(default_factory=list)
    """The best dev score of each candidate, such as each layer."""


@dataclass(frozen=True)
class Candidate:
    """Features to choose between on dev, such as those of one layer."""

    choice: dict[str, Any]
    features: Callable[[], Any]
    """Function that returns the features of all rows, (rows, features), dense or sparse."""


def fit_best(
    data: ProbeSet, division: Division, candidates: Iterable[Candidate], strengths: tuple[float, ...], scale: bool
) -> Fit:
    """Fit all candidates with all strengths on train, choose the best pair on dev, and score it once on test.

    Of equally good candidates the first one is chosen, and of equally good strengths the strongest regularization.

    Args:
        data: The data set; test targets are used only for the final score.
        division: Rows to fit, choose and score on.
        candidates: Features to choose between.
        strengths: C of the logistic regression, or alpha of the ridge regression, from strong to weak.
        scale: Standardize dense features, with the mean and standard deviation of the training rows.
    """
    best: tuple[float, dict[str, Any], NDArray] | None = None
    by_candidate = []
    name = "C" if data.num_classes else "alpha"
    for candidate in candidates:
        features = candidate.features()
        train, dev, test = (features[rows] for rows in (division.train, division.dev, division.test))
        if scale:
            scaler = StandardScaler().fit(train)
            train, dev, test = map(scaler.transform, (train, dev, test))
        best_here = -np.inf
        for strength, predict in _models(train, data.targets[division.train], bool(data.num_classes), strengths):
            score = data.score(division.dev, predict(dev))
            best_here = max(best_here, score)
            if best is None or score > best[0]:
                best = score, {**candidate.choice, name: strength}, predict(test)
        by_candidate.append({**candidate.choice, "dev": best_here})
    assert best is not None
    return Fit(best[0], data.score(division.test, best[2]), best[1], by_candidate)


def _models(
    features: Any, targets: NDArray, is_classes: bool, strengths: tuple[float, ...]
) -> Iterator[tuple[float, Callable[[Any], NDArray]]]:
    """Yield each strength with the `predict` method of a fitted model. The method is valid until the next item."""
    if not is_classes:
        for alpha in strengths:
            yield alpha, Ridge(alpha=alpha).fit(features, targets).predict
        return
    # A warm start from the stronger regularization saves most iterations.
    model = LogisticRegression(C=strengths[0], max_iter=MAX_ITERATIONS, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield strength, model.set_params(C=strength).fit(features, targets).predict
