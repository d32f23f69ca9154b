"""Classification metrics, all of them scikit-learn's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score


def probabilities(logits: NDArray) -> NDArray[np.float64]:
    """Softmax over the last axis, (N, C) → (N, C), in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def classification_metrics(labels: NDArray[np.int64], logits: NDArray) -> dict[str, float | None]:
    """Accuracy, macro F1, Matthews' correlation, and for two classes the area under the ROC curve.

    Args: `labels` (N,) class numbers; `logits` (N, C).
    MCC is 0 where all predictions or all labels are one class (scikit-learn's convention). Macro F1
    is over the classes that occur in labels or predictions. The area is None where only one class
    occurs in the labels: it is undefined there.
    """
    predicted = np.asarray(logits).argmax(axis=-1)
    scores: dict[str, float | None] = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1_score(labels, predicted, average="macro")),
        "mcc": float(matthews_corrcoef(labels, predicted)),
    }
    if np.shape(logits)[-1] == 2:
        # The log-odds rank rows as their probabilities do, without rounding them to 0 and 1.
        log_odds = np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0]
        scores["auroc"] = float(roc_auc_score(labels, log_odds)) if len(np.unique(labels)) == 2 else None
    return scores
