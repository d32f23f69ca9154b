"""What fine-tuning asks of a task: how labels are read, the loss, the metrics, the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from dnabert_rm.downstream.finetuning.tables import LabelledTable

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
