"""What fine-tuning asks of a task: how labels are read, the loss, the metrics, the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.finetune.tables import LabelledTable, RowError, class_names, names_in, number, numbers_in, yes_or_no
from dnabert_rm.utils.errors import DataError

IGNORED = -100
"""In place of a target: no loss and no score here."""


@dataclass(frozen=True)
class Task:
    """A task and, once `fitted` to a training table, its labels.

    Shapes: B rows, L labels; a row's target is () or (L,), or (bases,) where `per_base`.
    """

    columns: tuple[str, ...]
    """The label columns of the tables."""
    labels: tuple[str, ...] = ()
    """What the head's outputs stand for, in order."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of each target in the training table, where targets are numbers; the head answers (target - mean) / std."""

    name: ClassVar[str]
    problem_type: ClassVar[str | None]
    """transformers' name for the loss of a sequence head."""
    best_metric: ClassVar[str]
    per_base: ClassVar[bool] = False

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        """Raise `RowError` where label columns can't be read, whatever the training table holds."""

    def fitted(self, train: LabelledTable) -> Self:
        """This task with the labels of a training table; `DataError` where there is nothing to learn."""
        raise NotImplementedError

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        """A row's target; `RowError` for a label that the training table does not have."""
        raise NotImplementedError

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        """Sum of the losses of all targets but `IGNORED` ones: a tensor (); `weights` (L,) are of classes."""
        raise NotImplementedError

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        """Weights (L,) of classes that are "balanced", as scikit-learn means it."""
        raise NotImplementedError

    def metrics(self, targets: NDArray, answers: NDArray) -> dict[str, float | None]:
        """Scores by name; `answers` are logits (B, L), or class numbers (B, bases) where `per_base`."""
        raise NotImplementedError

    def prediction_columns(self) -> list[str]:
        """Names of what `predictions` gives, after the label columns."""
        raise NotImplementedError

    def predictions(self, answers: NDArray, targets: NDArray) -> Iterator[list[str]]:
        """The columns of each row's prediction, as text."""
        raise NotImplementedError

    def describe(self) -> str:
        """The labels, for people."""
        return f"classes {', '.join(self.labels)}"


class Classes(Task):
    """One of several classes for a sequence."""

    name, best_metric = "classes", "mcc"
    problem_type: ClassVar[str | None] = "single_label_classification"

    def fitted(self, train: LabelledTable) -> Self:
        return replace(self, labels=class_names(train.labels, train.path))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        return np.array(number(fields[0], self.labels), dtype=np.int64)

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        from torch.nn.functional import cross_entropy

        flat = logits.float().flatten(0, -2), targets.flatten()
        return cross_entropy(*flat, weight=weights, ignore_index=IGNORED, reduction="sum")

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        from sklearn.utils.class_weight import compute_class_weight

        given = np.concatenate([np.atleast_1d(target) for target in targets])
        given = given[given != IGNORED]
        weights = np.ones(len(self.labels))  # of a class that only held-out rows have
        weights[np.unique(given)] = compute_class_weight("balanced", classes=np.unique(given), y=given)
        return weights

    def metrics(self, targets: NDArray, answers: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import classification_metrics

        return classification_metrics(targets, answers)

    def prediction_columns(self) -> list[str]:
        return ["prediction", *(f"p_{label}" for label in self.labels)]

    def predictions(self, answers: NDArray, targets: NDArray) -> Iterator[list[str]]:
        from dnabert_rm.finetune.task_metrics import probabilities

        for chances in probabilities(answers):
            yield [self.labels[chances.argmax()], *(f"{chance:.6f}" for chance in chances)]


class Bases(Classes):
    """A class for each base, written as one letter a base: `0011100` or `EEEIIIE`."""

    name, problem_type, per_base = "bases", None, True

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        if len(fields[0]) != len(sequence):
            raise RowError(f"{len(fields[0])} labels for {len(sequence)} bases; write one letter for each base")

    def fitted(self, train: LabelledTable) -> Self:
        letters = sorted({letter for text in train.labels for letter in text})
        return replace(self, labels=class_names(letters, train.path))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        texts = fields[0], "".join(self.labels)
        codes, known = (np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in texts)
        found = codes[:, None] == known
        if not found.any(axis=1).all():
            number(fields[0][int(found.any(axis=1).argmin())], self.labels)
        return found.argmax(axis=1)

    def metrics(self, targets: NDArray, answers: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import class_metrics

        scored = targets != IGNORED
        return class_metrics(targets[scored], answers[scored])

    def prediction_columns(self) -> list[str]:
        return ["prediction"]

    def predictions(self, answers: NDArray, targets: NDArray) -> Iterator[list[str]]:
        """One letter a base, "." where the model saw nothing of it."""
        letters = np.array([*self.labels, "."])
        for row, target in zip(answers, targets, strict=True):
            yield ["".join(letters[np.where(target == IGNORED, -1, row)])]


class MultiLabel(Task):
    """Any number of labels for a sequence: `a;c` in one column, or a column of 0 and 1 for each label."""

    name, problem_type, best_metric = "multi-label", "multi_label_classification", "auroc_macro"

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        if len(self.columns) > 1:
            yes_or_no(fields, self.columns)

    def fitted(self, train: LabelledTable) -> Self:
        if len(self.columns) > 1:
            return replace(self, labels=self.columns)
        names = {name for text in train.labels for name in names_in(text)}
        if not names:
            raise DataError(f"{train.path}: no row has a label in column {self.columns[0]!r}")
        return replace(self, labels=tuple(sorted(names)))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        if len(self.columns) > 1:
            return np.array(yes_or_no(fields, self.columns), dtype=np.float32)
        target = np.zeros(len(self.labels), dtype=np.float32)
        target[[number(name, self.labels) for name in names_in(fields[0])]] = 1
        return target

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        from torch.nn.functional import binary_cross_entropy_with_logits as entropy

        losses = entropy(logits.float(), targets, pos_weight=weights, reduction="none")
        return losses[targets != IGNORED].sum()

    def class_weights(self, targets: Sequence[NDArray]) -> NDArray:
        """How many times more rows lack a label than have it, (L,): the weight of those that have it."""
        having = np.sum(targets, axis=0)
        return (len(targets) - having) / np.maximum(having, 1)

    def metrics(self, targets: NDArray, answers: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import multi_label_metrics

        return multi_label_metrics(targets, answers)

    def prediction_columns(self) -> list[str]:
        return ["prediction", *(f"p_{label}" for label in self.labels)]

    def predictions(self, answers: NDArray, targets: NDArray) -> Iterator[list[str]]:
        from dnabert_rm.finetune.task_metrics import label_probabilities

        for chances in label_probabilities(answers):
            named = ";".join(label for label, chance in zip(self.labels, chances, strict=True) if chance > 0.5)
            yield [named, *(f"{chance:.6f}" for chance in chances)]

    def describe(self) -> str:
        return f"labels {', '.join(self.labels)}"


class Regression(Task):
    """One number for a sequence, or one for each label column."""

    name, problem_type, best_metric = "regression", "regression", "r2"

    def check(self, sequence: str, fields: Sequence[str]) -> None:
        numbers_in(fields, self.columns)

    def fitted(self, train: LabelledTable) -> Self:
        targets = np.array([numbers_in(fields, self.columns) for fields in train.fields])
        mean, std = targets.mean(axis=0), targets.std(axis=0)
        for column, spread, first in zip(self.columns, std, train.fields[0], strict=True):
            if not spread:
                raise DataError(f"{train.path}: every row has {first} in column {column!r}; there is nothing to learn")
        return replace(self, labels=self.columns, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def target(self, sequence: str, fields: Sequence[str]) -> NDArray:
        numbers = np.array(numbers_in(fields, self.columns))
        return ((numbers - self.mean) / self.std).astype(np.float32)

    def in_units(self, answers: NDArray) -> NDArray[np.float64]:
        """Standardised numbers (B, L) → numbers in the units of the table."""
        return np.asarray(answers, dtype=np.float64) * self.std + self.mean

    def loss(self, logits: Any, targets: Any, weights: Any = None) -> Any:
        return (logits.float() - targets)[targets != IGNORED].square().sum()

    def metrics(self, targets: NDArray, answers: NDArray) -> dict[str, float | None]:
        from dnabert_rm.finetune.task_metrics import regression_metrics

        return regression_metrics(self.in_units(targets), self.in_units(answers), self.labels)

    def prediction_columns(self) -> list[str]:
        return ["prediction"] if len(self.labels) == 1 else [f"prediction_{label}" for label in self.labels]

    def predictions(self, answers: NDArray, targets: NDArray) -> Iterator[list[str]]:
        for numbers in self.in_units(answers):
            yield [f"{value:.7g}" for value in numbers]

    def describe(self) -> str:
        return f"targets {', '.join(self.labels)}"


TASK_CLASSES: dict[str, type[Task]] = {task.name: task for task in (Classes, MultiLabel, Regression, Bases)}
