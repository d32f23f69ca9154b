"""Metrics: scikit-learn's values, and what is told where they are undefined."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from dnabert_rm.downstream.metrics import classification_metrics, probabilities


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.integers(20, 60))
def test_equal_to_scikit_learn(num_classes, seed, rows):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, rows)])
    logits = rng.normal(size=(len(labels), num_classes)).astype(np.float32)
    predicted = logits.argmax(axis=1)
    scores = classification_metrics(labels, logits)
    expected = {
        "accuracy": (labels == predicted).mean(),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
    }
    if num_classes == 2:
        expected["auroc"] = metrics.roc_auc_score(labels, probabilities(logits)[:, 1])
    assert set(scores) == set(expected)
    assert scores == pytest.approx(expected)


def test_known_values():
    """By hand: 3 true positives, 1 false negative, 2 false positives, 2 true negatives."""
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    logits = np.eye(2)[[1, 1, 1, 0, 1, 1, 0, 0]]
    scores = classification_metrics(labels, logits)
    assert scores["accuracy"] == 5 / 8
    assert scores["mcc"] == pytest.approx((3 * 2 - 2 * 1) / np.sqrt(5 * 4 * 4 * 3))
    assert scores["f1_macro"] == pytest.approx((2 * 3 / (2 * 3 + 2 + 1) + 2 * 2 / (2 * 2 + 1 + 2)) / 2)
    assert scores["auroc"] == pytest.approx((3 * 2 + 0.5 * (3 * 2 + 1 * 2)) / 16)


def test_constant_predictor_has_mcc_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.array([0, 1, 1, 0]), np.tile([2.0, 1.0], (4, 1)))
    assert scores["mcc"] == 0.0 and scores["auroc"] == 0.5


def test_single_class_in_the_labels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.zeros(3, dtype=int), np.array([[1.0, 0], [0, 1], [1, 0]]))
    assert scores["auroc"] is None and scores["mcc"] == 0.0


def test_area_is_not_lost_in_rounding():
    """Rows that a float32 softmax would call 1.0 alike are still ranked."""
    logits = np.array([[0.0, 100.0], [0.0, 110.0]], dtype=np.float32)
    assert classification_metrics(np.array([0, 1]), logits)["auroc"] == 1.0


def test_probabilities():
    found = probabilities(np.array([[0.0, np.log(3.0)], [1000.0, 0.0]]))
    assert found == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))
