"""Task metrics equal scikit-learn's and scipy's, and are None or 0 where these are undefined."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from dnabert_rm.finetune.task_metrics import (
    class_metrics,
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
    sigmoid,
    softmax,
)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.integers(20, 60))
def test_classification_metrics_equal_scikit_learn(num_classes, seed, rows):
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
        expected["auroc"] = metrics.roc_auc_score(labels, softmax(logits)[:, 1])
    assert set(scores) == set(expected)
    assert scores == pytest.approx(expected)


def test_classification_metrics_by_hand():
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
        bases = class_metrics(np.array([0, 1, 1, 0]), np.ones(4, dtype=int))
        labels = multi_label_metrics(np.array([[1, 0], [0, 1], [1, 1]]), np.full((3, 2), -5.0))
        numbers = regression_metrics(np.array([[1.0], [2.0], [4.0]]), np.full((3, 1), 2.0), ["y"])
    assert scores["mcc"] == bases["mcc"] == labels["mcc_macro"] == 0.0
    assert scores["auroc"] == labels["auroc_macro"] == 0.5 and labels["f1_macro"] == labels["f1_micro"] == 0.0
    assert numbers["pearson"] == numbers["spearman"] == 0.0


def test_auroc_of_a_single_class_is_undefined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.zeros(3, dtype=int), np.array([[1.0, 0], [0, 1], [1, 0]]))
    assert scores["auroc"] is None and scores["mcc"] == 0.0


def test_auroc_does_not_suffer_from_rounding():
    """Rows whose float32 softmax is 1.0 for both are still ranked."""
    logits = np.array([[0.0, 100.0], [0.0, 110.0]], dtype=np.float32)
    assert classification_metrics(np.array([0, 1]), logits)["auroc"] == 1.0


def test_softmax():
    found = softmax(np.array([[0.0, np.log(3.0)], [1000.0, 0.0]]))
    assert found == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_multi_label_metrics_equal_scikit_learn(num_labels, seed):
    rng = np.random.default_rng(seed)
    both = np.repeat([[0], [1]], num_labels, axis=1)
    labels = np.concatenate([both, rng.integers(0, 2, (30, num_labels))]).astype(np.float32)
    logits = rng.normal(size=labels.shape)
    predicted, columns = (logits > 0).astype(int), range(num_labels)
    assert multi_label_metrics(labels, logits) == pytest.approx(
        {
            "f1_macro": np.mean([metrics.f1_score(labels[:, i], predicted[:, i]) for i in columns]),
            "f1_micro": metrics.f1_score(labels.ravel(), predicted.ravel()),
            "mcc_macro": np.mean([metrics.matthews_corrcoef(labels[:, i], predicted[:, i]) for i in columns]),
            "auroc_macro": metrics.roc_auc_score(labels, logits, average="macro"),
        }
    )


def test_mean_auroc_leaves_out_constant_labels():
    logits = np.array([[0.1, 3], [0.9, 2], [0.3, 1]])
    labels = np.array([[0, 1], [1, 1], [0, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert multi_label_metrics(labels, logits)["auroc_macro"] == 1.0
        assert multi_label_metrics(labels[:, 1:], logits[:, 1:])["auroc_macro"] is None


def test_regression_metrics_equal_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(40, 2)) * [1, 50]
    predicted = targets + rng.normal(size=(40, 2)) * [2, 10]
    scores = regression_metrics(targets, predicted, ["a", "b"])
    for metric, function in {"pearson": stats.pearsonr, "spearman": stats.spearmanr}.items():
        each = [function(targets[:, i], predicted[:, i]).statistic for i in range(2)]
        assert [scores[f"{metric}_a"], scores[f"{metric}_b"], scores[metric]] == pytest.approx([*each, np.mean(each)])
    assert scores["r2"] == pytest.approx(metrics.r2_score(targets, predicted))
    assert scores["mse_b"] == pytest.approx(metrics.mean_squared_error(targets[:, 1], predicted[:, 1]))


def test_constant_targets_have_undefined_correlation():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = regression_metrics(np.ones((3, 1)), np.array([[1.0], [2], [3]]), ["y"])
    assert scores == {"pearson": None, "spearman": None, "r2": None, "mse": pytest.approx(5 / 3)}


def test_sigmoid():
    assert sigmoid(np.array([[0.0, 800.0], [-800.0, np.log(3)]])) == pytest.approx(np.array([[0.5, 1.0], [0.0, 0.75]]))
