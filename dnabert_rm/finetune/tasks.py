"""Fine-tuning tasks. Each task defines the labels, loss, metrics and predictions of its head.

The shape of a row's target is () for a class per sequence, (labels,) for multi-label tasks and regression, and (bases,)
for `per_base` tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.finetune.tables import (
    LABEL_SEPARATOR,
    LabelledTable,
    RowError,
    class_names,
    label_index,
    parse_binary_labels,
    parse_numbers,
    split_labels,
)
from dnabert_rm.utils.errors import DataError

IGNORE_INDEX = -100
"""Target value that is excluded from loss and metrics, as in PyTorch's cross entropy."""


@dataclass(frozen=True)
class Task:
    """Base class of the tasks. `fitted` adds the labels that occur in a training table."""

    columns: tuple[str, ...]
    """Label columns of the tables."""
    labels: tuple[str, ...] = ()
    """Names of the head's outputs, in order."""
    mean: tuple[float, ...] = ()
    """Mean of each regression target in the training table; the head predicts (target - mean) / std."""
    std: tuple[float, ...] = ()
    """Standard deviation of each regression target in the training table."""

    name: ClassVar[str]
    """Value of `--task`."""
    problem_type: ClassVar[str | None]
    """transformers' name for the loss of a sequence head."""
    best_metric: ClassVar[str]
    """Default metric for choosing the checkpoint."""
    per_base: ClassVar[bool] = False
    """Whether each base has a target. If so, the head is a token classifier."""

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        """Raise `RowError` if the label columns can't be parsed. Labels need not occur in the training table."""

    def fitted(self, train: LabelledTable) -> Self:
        """Return this task with the labels of a training table.

        Raise `DataError` for labels that a model can't learn, such as the same class in every row.
        """
        raise NotImplementedError

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        """Return the target of a row. Raise `RowError` for a label that is not in the training table."""
        raise NotImplementedError

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        """Return the loss summed over all targets except `IGNORE_INDEX`, as a scalar tensor.

        `logits` have shape (rows, labels), or (rows, bases, labels) for `per_base` tasks. `weights` are class weights
        (labels,).
        """
        raise NotImplementedError

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        """Return balanced class weights, shape (labels,), as scikit-learn defines "balanced"."""
        raise NotImplementedError

    def metrics(self, targets: NDArray, outputs: NDArray) -> dict[str, float | None]:
        """Return the score of each metric.

        `outputs` are logits (rows, labels), or class indices (rows, bases) for `per_base` tasks.
        """
        raise NotImplementedError

    def right_and_wrong_outputs(self, targets: NDArray) -> tuple[NDArray, NDArray]:
        """Return two sets of outputs: one predicts every target correctly, the other every target wrongly.

        A metric with the same score for right and wrong outputs can't choose a checkpoint.
        """
        raise NotImplementedError

    def constant_labels(self, targets: NDArray) -> str:
        """Describe the labels whose value is the same in every row. Return "" if every label varies."""
        raise NotImplementedError

    def prediction_columns(self) -> list[str]:
        """Return the names of the prediction columns of predictions.csv."""
        raise NotImplementedError

    def predictions(self, outputs: NDArray, targets: NDArray) -> Iterator[list[str]]:
        """Yield the cells of the prediction columns for each row, as text."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the labels as text for a notice."""
        return f"classes {', '.join(self.labels)}"


class SequenceClassification(Task):
    """Task with one class per sequence, trained with the cross-entropy loss."""

    name = "classes"
    best_metric = "mcc"
    problem_type: ClassVar[str | None] = "single_label_classification"

    def fitted(self, train: LabelledTable) -> Self:
        return replace(self, labels=class_names(train.labels, train.path))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        return np.array(label_index(fields[0], self.labels), dtype=np.int64)

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        from torch.nn.functional import cross_entropy

        flat_logits = logits.float().flatten(0, -2)
        return cross_entropy(flat_logits, targets.flatten(), weight=weights, ignore_index=IGNORE_INDEX, reduction="sum")

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        from sklearn.utils.class_weight import compute_class_weight

        classes = np.concatenate([np.atleast_1d(target) for target in targets])
        classes = classes[classes != IGNORE_INDEX]
        present = np.unique(classes)
        weights = np.ones(len(self.labels))  # 1 for a class that only occurs in held-out rows
        weights[present] = compute_class_weight("balanced", classes=present, y=classes)
        return weights

    def metrics(self, targets: NDArray, outputs: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import classification_metrics

        return classification_metrics(targets, outputs)

    def right_and_wrong_outputs(self, targets: NDArray) -> tuple[NDArray, NDArray]:
        right = np.eye(len(self.labels))[targets]
        return right, np.roll(right, 1, axis=-1)

    def constant_labels(self, targets: NDArray) -> str:
        present = np.unique(targets[targets != IGNORE_INDEX])
        return f"the class {self.labels[present[0]]!r}" if len(present) == 1 else ""

    def prediction_columns(self) -> list[str]:
        return ["prediction", *(f"p_{label}" for label in self.labels)]

    def predictions(self, outputs: NDArray, targets: NDArray) -> Iterator[list[str]]:
        from dnabert_rm.finetune.task_metrics import softmax

        for probabilities in softmax(outputs):
            yield [self.labels[probabilities.argmax()], *(f"{value:.6f}" for value in probabilities)]


class BaseClassification(SequenceClassification):
    """Task with one class per base. The label column holds one letter per base, such as `0011100` or `EEEIIIE`."""

    name = "bases"
    problem_type = None
    per_base = True

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        if len(fields[0]) != len(sequence):
            raise RowError(f"{len(fields[0])} labels for {len(sequence)} bases; write one label letter for each base")

    def fitted(self, train: LabelledTable) -> Self:
        letters = sorted({letter for text in train.labels for letter in text})
        return replace(self, labels=class_names(letters, train.path))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        codes = _letter_codes(fields[0])
        is_label = codes[:, None] == _letter_codes("".join(self.labels))
        known = is_label.any(axis=1)
        if not known.all():
            label_index(fields[0][int(known.argmin())], self.labels)  # raises `RowError`
        return is_label.argmax(axis=1)

    def metrics(self, targets: NDArray, outputs: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import class_metrics

        scored = targets != IGNORE_INDEX
        return class_metrics(targets[scored], outputs[scored])

    def right_and_wrong_outputs(self, targets: NDArray) -> tuple[NDArray, NDArray]:
        return targets, (targets + 1) % len(self.labels)

    def prediction_columns(self) -> list[str]:
        return ["prediction"]

    def predictions(self, outputs: NDArray, targets: NDArray) -> Iterator[list[str]]:
        """Yield one string per row: the predicted letter of each base, or "." if no token predicts the base."""
        letters = np.array([*self.labels, "."])
        for row, target in zip(outputs, targets, strict=True):
            yield ["".join(letters[np.where(target == IGNORE_INDEX, -1, row)])]


def _letter_codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


class MultiLabelClassification(Task):
    """Task with any number of labels per sequence: `a;c` in one column, or a column per label with 0 or 1."""

    name = "multi-label"
    problem_type = "multi_label_classification"
    best_metric = "auroc_macro"

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        if len(self.columns) > 1:
            parse_binary_labels(fields, self.columns)

    def fitted(self, train: LabelledTable) -> Self:
        if len(self.columns) > 1:
            return replace(self, labels=self.columns)
        names = {name for text in train.labels for name in split_labels(text)}
        if not names:
            raise DataError(f"{train.path}: no row has a label in column {self.columns[0]!r}; fill in labels")
        return replace(self, labels=tuple(sorted(names)))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        if len(self.columns) > 1:
            return np.array(parse_binary_labels(fields, self.columns), dtype=np.float32)
        target = np.zeros(len(self.labels), dtype=np.float32)
        target[[label_index(name, self.labels) for name in split_labels(fields[0])]] = 1
        return target

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        from torch.nn.functional import binary_cross_entropy_with_logits

        losses = binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=weights, reduction="none")
        return losses[targets != IGNORE_INDEX].sum()

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        """Return the weight of each label's positive rows, shape (labels,).

        The weight is the number of rows without the label, divided by the number of rows with the label. It is 1 for a
        label of all rows, because a weight of 0 would leave the label's output untrained.
        """
        positives = np.sum(targets, axis=0)
        negatives = len(targets) - positives
        return np.where(negatives > 0, negatives / np.maximum(positives, 1), 1)

    def metrics(self, targets: NDArray, outputs: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import multi_label_metrics

        return multi_label_metrics(targets, outputs)

    def right_and_wrong_outputs(self, targets: NDArray) -> tuple[NDArray, NDArray]:
        return 2 * targets - 1, 1 - 2 * targets

    def constant_labels(self, targets: NDArray) -> str:
        return _constant_columns(targets, self.labels)

    def prediction_columns(self) -> list[str]:
        return ["prediction", *(f"p_{label}" for label in self.labels)]

    def predictions(self, outputs: NDArray, targets: NDArray) -> Iterator[list[str]]:
        from dnabert_rm.finetune.task_metrics import sigmoid

        for probabilities in sigmoid(outputs):
            named = [label for label, value in zip(self.labels, probabilities, strict=True) if value > 0.5]
            yield [LABEL_SEPARATOR.join(named), *(f"{value:.6f}" for value in probabilities)]

    def describe(self) -> str:
        return f"labels {', '.join(self.labels)}"


class Regression(Task):
    """Task with one number per label column, trained with the squared error."""

    name = "regression"
    problem_type = "regression"
    best_metric = "r2"

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        parse_numbers(fields, self.columns)

    def fitted(self, train: LabelledTable) -> Self:
        targets = np.array([parse_numbers(fields, self.columns) for fields in train.fields])
        mean = targets.mean(axis=0)
        std = targets.std(axis=0)
        # The standard deviation of equal numbers can be above 0, as their mean is rounded. That of tiny ones can be 0.
        for column, spread, deviation, first in zip(
            self.columns, np.ptp(targets, axis=0), std, train.fields[0], strict=True
        ):
            if spread == 0:
                raise DataError(
                    f"{train.path}: every row has {first} in column {column!r}; provide rows with different values"
                )
            if deviation == 0:
                raise DataError(
                    f"{train.path}: column {column!r} differs too little between rows; multiply it by a constant"
                )
        return replace(self, labels=self.columns, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        numbers = np.array(parse_numbers(fields, self.columns))
        return ((numbers - self.mean) / self.std).astype(np.float32)

    def in_table_units(self, outputs: NDArray) -> NDArray[np.float64]:
        """Convert standardized numbers, shape (rows, labels), to the units of the training table."""
        return np.asarray(outputs, dtype=np.float64) * self.std + self.mean

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        return (logits.float() - targets)[targets != IGNORE_INDEX].square().sum()

    def metrics(self, targets: NDArray, outputs: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import regression_metrics

        return regression_metrics(self.in_table_units(targets), self.in_table_units(outputs), self.labels)

    def right_and_wrong_outputs(self, targets: NDArray) -> tuple[NDArray, NDArray]:
        return targets, np.max(targets) + 1 - targets  # anticorrelated, and different from every target

    def constant_labels(self, targets: NDArray) -> str:
        return _constant_columns(targets, self.labels)

    def prediction_columns(self) -> list[str]:
        return ["prediction"] if len(self.labels) == 1 else [f"prediction_{label}" for label in self.labels]

    def predictions(self, outputs: NDArray, targets: NDArray) -> Iterator[list[str]]:
        for numbers in self.in_table_units(outputs):
            yield [f"{value:.7g}" for value in numbers]

    def describe(self) -> str:
        return f"targets {', '.join(self.labels)}"


def _constant_columns(targets: NDArray, names: Sequence[str]) -> str:
    """Name the columns of `targets`, shape (rows, labels), that are constant. Return "" if every column varies."""
    constant = [name for name, column in zip(names, targets.T, strict=True) if np.ptp(column) == 0]
    return f"the same value of {', '.join(constant)}" if constant else ""


_ALL_TASKS: tuple[type[Task], ...] = (SequenceClassification, MultiLabelClassification, Regression, BaseClassification)
TASK_CLASSES: dict[str, type[Task]] = {task.name: task for task in _ALL_TASKS}
"""Class for each value of `--task`."""
