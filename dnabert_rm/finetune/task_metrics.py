"""Metrics of the tasks, computed by scikit-learn and scipy. An undefined metric is None, never NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

Scores = dict[str, float | None]


def softmax(logits: NDArray) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in the shape of `logits` and in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: NDArray) -> NDArray[np.float64]:
    """Return the logistic function of each logit, any shape, in float64."""
    return np.asarray(softmax(np.stack([np.zeros_like(logits), logits], axis=-1))[..., 1])


def class_metrics(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Scores:
    """Return accuracy, macro F1 and Matthews' correlation (MCC) for 1-D arrays of class indices.

    MCC is 0 if all predictions or all labels are the same class (scikit-learn's convention). Macro F1 is the mean over
    the classes that occur in labels or predictions.
    """
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1_score(labels, predicted, average="macro")),
        "mcc": _mcc(labels, predicted),
    }


def classification_metrics(labels: NDArray[np.int64], logits: NDArray) -> Scores:
    """Return the `class_metrics` of the most likely classes, and with two classes also the area under the ROC curve.

    `labels` are class indices (rows,), and `logits` have shape (rows, classes). The area under the ROC curve is None if
    all labels are the same class.
    """
    scores = class_metrics(labels, np.asarray(logits).argmax(axis=-1))
    if np.shape(logits)[-1] == 2:
        # Log-odds rank rows in the same order as probabilities, but do not saturate at 0 and 1.
        scores["auroc"] = _area(labels, np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0])
    return scores


def multi_label_metrics(labels: NDArray, logits: NDArray) -> Scores:
    """Return micro F1, macro F1, macro MCC (Matthews' correlation) and macro AUROC (area under the ROC curve).

    Macro scores are means over the labels. `labels` are 0 or 1, shape (rows, labels). `logits` have the same shape.
    A positive logit means that the label is predicted. F1 is 0 for a label that neither occurs nor is predicted.
    Macro AUROC includes only labels with both values, 0 and 1. If there is no such label, macro AUROC is None.
    """
    labels = np.asarray(labels).astype(int)
    predicted = (np.asarray(logits) > 0).astype(int)
    areas = [_area(*pair) for pair in zip(labels.T, np.asarray(logits).T, strict=True)]
    defined = [area for area in areas if area is not None]
    correlations = [_mcc(*pair) for pair in zip(labels.T, predicted.T, strict=True)]
    return {
        "f1_macro": _f1(labels, predicted, "macro"),
        "f1_micro": _f1(labels, predicted, "micro"),
        "mcc_macro": float(np.mean(correlations)),
        "auroc_macro": float(np.mean(defined)) if defined else None,
    }


def regression_metrics(targets: NDArray, predicted: NDArray, names: Sequence[str]) -> Scores:
    """Return Pearson's and Spearman's correlation, R² and mean squared error, averaged over the targets.

    With several targets, the result also holds the scores of each single target. `targets` and `predicted` have shape
    (rows, targets), in the units of the table. `names` are the targets' names. If a target is constant, its
    correlations and R² are None, and so are the means of these scores over the targets. If a target varies but its
    predictions are constant, its correlations are 0.
    """
    targets = np.asarray(targets, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    by_target = [_target_metrics(*pair) for pair in zip(targets.T, predicted.T, strict=True)]
    scores: Scores = {}
    for metric in by_target[0]:
        values = [target_scores[metric] for target_scores in by_target]
        scores[metric] = None if None in values else float(np.mean(np.array(values, dtype=float)))
    if len(names) > 1:
        for name, target_scores in zip(names, by_target, strict=True):
            scores |= {f"{metric}_{name}": value for metric, value in target_scores.items()}
    return scores


def _target_metrics(target: NDArray, predicted: NDArray) -> Scores:
    def correlation(function: Callable) -> float | None:
        if np.ptp(target) == 0:
            return None
        return 0.0 if np.ptp(predicted) == 0 else float(function(target, predicted).statistic)

    return {
        "pearson": correlation(pearsonr),
        "spearman": correlation(spearmanr),
        "r2": None if np.ptp(target) == 0 else float(r2_score(target, predicted)),
        "mse": float(mean_squared_error(target, predicted)),
    }


def _mcc(labels: NDArray, predicted: NDArray) -> float:
    if len(np.unique(labels)) < 2 or len(np.unique(predicted)) < 2:
        return 0.0  # scikit-learn returns 0 too, but with a warning
    return float(matthews_corrcoef(labels, predicted))


def _area(labels: NDArray, scores: NDArray) -> float | None:
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None


def _f1(labels: NDArray, predicted: NDArray, average: str) -> float:
    if labels.shape[1] == 1:  # scikit-learn reads a single column as classes 0 and 1
        return float(f1_score(labels[:, 0], predicted[:, 0], zero_division=0))
    return float(f1_score(labels, predicted, average=average, zero_division=0))
