"""Metrics of every task, all of them scikit-learn's or scipy's; what is undefined is None and never NaN."""

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


def probabilities(logits: NDArray) -> NDArray[np.float64]:
    """Softmax over the last axis, (N, C) → (N, C), in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def label_probabilities(logits: NDArray) -> NDArray[np.float64]:
    """The logistic function of each logit, any shape, in float64."""
    return np.asarray(probabilities(np.stack([np.zeros_like(logits), logits], axis=-1))[..., 1])


def class_metrics(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Scores:
    """Accuracy, macro F1 and Matthews' correlation of class numbers (N,).

    MCC is 0 where all predictions or all labels are one class (scikit-learn's convention). Macro F1
    is over the classes that occur in labels or predictions.
    """
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1_score(labels, predicted, average="macro")),
        "mcc": _mcc(labels, predicted),
    }


def classification_metrics(labels: NDArray[np.int64], logits: NDArray) -> Scores:
    """`class_metrics` of the likeliest classes, and for two classes the area under the ROC curve.

    Args: `labels` (N,) class numbers; `logits` (N, C). The area is None where only one class
    occurs in the labels: it is undefined there.
    """
    scores = class_metrics(labels, np.asarray(logits).argmax(axis=-1))
    if np.shape(logits)[-1] == 2:
        # The log-odds rank rows as their probabilities do, without rounding them to 0 and 1.
        scores["auroc"] = _area(labels, np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0])
    return scores


def multi_label_metrics(labels: NDArray, logits: NDArray) -> Scores:
    """F1 over all labels at once and as a mean over labels, and the means of MCC and of the ROC curves' areas.

    Args: `labels` (N, L), 0 or 1; `logits` (N, L), a label is predicted above 0. F1 of a label that is neither there
    nor predicted is 0. The mean area is over the labels that have both values, None where there is none.
    """
    labels, predicted = np.asarray(labels).astype(int), (np.asarray(logits) > 0).astype(int)
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
    """Pearson's and Spearman's correlation, R² and the mean squared error: means over targets, then each target's.

    Args: `targets` and `predicted` (N, T) in the units of the table; `names` of the T targets. Correlations with a
    constant prediction are 0; with a constant target they and R² are None, and so is a mean over such.
    """
    targets, predicted = np.asarray(targets, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    each = [_one_target(*pair) for pair in zip(targets.T, predicted.T, strict=True)]
    scores: Scores = {}
    for metric in each[0]:
        values = [one[metric] for one in each]
        scores[metric] = None if None in values else float(np.mean(np.array(values, dtype=float)))
    if len(names) > 1:
        scores |= {f"{metric}_{name}": one[metric] for name, one in zip(names, each, strict=True) for metric in one}
    return scores


def _one_target(target: NDArray, predicted: NDArray) -> Scores:
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
        return 0.0  # scikit-learn's value too, but it warns of one class that is both
    return float(matthews_corrcoef(labels, predicted))


def _area(labels: NDArray, scores: NDArray) -> float | None:
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None


def _f1(labels: NDArray, predicted: NDArray, average: str) -> float:
    if labels.shape[1] == 1:  # scikit-learn takes a single column for classes 0 and 1
        return float(f1_score(labels[:, 0], predicted[:, 0], zero_division=0))
    return float(f1_score(labels, predicted, average=average, zero_division=0))
