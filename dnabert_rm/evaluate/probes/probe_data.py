"""Rows and targets of the data sets that probes are fitted on, and their division into train, dev and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.evaluate.data_sets import DataSet, reason_not_to_run
from dnabert_rm.evaluate.suite import METRICS, Suite
from dnabert_rm.finetune import tables
from dnabert_rm.finetune.finetune_settings import DEV_ONE_IN
from dnabert_rm.finetune.tasks import TASK_CLASSES, Regression, Task
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import notice

Rows = NDArray[np.int64]
"""Indices of rows among all rows of a data set."""


@dataclass(frozen=True)
class Division:
    """Rows to fit on, rows to choose settings on, and rows to score once."""

    train: Rows
    dev: Rows
    test: Rows


@dataclass(frozen=True)
class ProbeSet:
    """One data set in memory. Its rows are those of its files, in the order of `files`."""

    name: str
    stand_in: bool
    """Whether dev.csv replaces a missing train.csv."""
    files: tuple[Path, ...]
    """The table to train on, dev.csv if it exists and isn't trained on, and test.csv."""
    row_counts: tuple[int, ...]
    """Number of rows in each of `files`."""
    sequences: list[str]
    targets: NDArray
    """(rows,): class indices in int64, or numbers in float64."""
    num_classes: int
    """0 with regression."""
    metric: str
    """Key of the metric in `finetune`'s scores.json."""
    shared_rows: int
    """Number of test rows whose sequence is also in the training table."""
    train_table: tables.LabelledTable

    @property
    def has_dev(self) -> bool:
        """Whether settings are chosen on a dev.csv, and not on rows held out of the training table."""
        return len(self.files) == 3

    def divide(self, labels_per_class: int, seed: int) -> Division:
        """Return the rows to train on, choose on and test on.

        Without dev.csv, a tenth of the training rows is held out as `finetune` does. If `labels_per_class` is not 0,
        that many of the training rows are drawn from each class. Dev and test stay whole.

        Raises `DataError` if a class has fewer training rows.
        """
        ends = np.cumsum(self.row_counts)
        train = np.arange(ends[0])
        dev, test = np.arange(ends[0], ends[-2]), np.arange(ends[-2], ends[-1])
        if not self.has_dev:
            # A table's line numbers ascend, so they identify its rows.
            kept, held_out = tables.hold_out(self.train_table, DEV_ONE_IN, seed)
            train, dev = (np.searchsorted(self.train_table.lines, table.lines) for table in (kept, held_out))
        if labels_per_class and not self.num_classes:
            raise DataError(f"--labels-per-class: {self.name} has no classes; choose other data sets with --sets")
        if labels_per_class:
            train = self._draw(train, labels_per_class, seed)
        if self.num_classes and len(np.unique(self.targets[train])) < 2:
            raise DataError(f"{self.files[0]}: too few rows to hold out a tenth of them; add rows or a dev.csv")
        return Division(train, dev, test)

    def _draw(self, train: Rows, labels_per_class: int, seed: int) -> Rows:
        order = train[random.permutation(random.key(seed, "probe labels"), len(train))]
        drawn = []
        for index in range(self.num_classes):
            rows = order[self.targets[order] == index]
            if len(rows) < labels_per_class:
                raise DataError(
                    f"--labels-per-class {labels_per_class}: {self.name} has a class with only {len(rows)} training "
                    f"rows; pass {len(rows)} or less, or choose other data sets with --sets"
                )
            drawn.append(rows[:labels_per_class])
        return np.sort(np.concatenate(drawn))

    def varies_with_seed(self, labels_per_class: int) -> bool:
        """Return whether `divide` depends on the seed."""
        return labels_per_class > 0 or not self.has_dev

    def score(self, rows: Rows, predicted: NDArray) -> float:
        """Return the metric of predicted targets. An undefined R² counts as 0."""
        from dnabert_rm.finetune.task_metrics import class_metrics, regression_metrics

        if self.num_classes:
            return float(class_metrics(self.targets[rows], predicted)[self.metric] or 0.0)
        scores = regression_metrics(self.targets[rows, None], predicted[:, None], (tables.LABEL_COLUMN,))
        return float(scores[self.metric] or 0.0)


def reason_not_to_probe(data_set: DataSet, stand_in: bool) -> str | None:
    """Return why a data set can't be measured, or None if it can. Only dev.csv may be missing without `stand_in`."""
    return None if data_set.missing == ["dev.csv"] else reason_not_to_run(data_set, stand_in)


def read_probe_set(data_set: DataSet, suite: Suite, task_name: str | None = None) -> ProbeSet:
    """Read the tables of a data set for which `reason_not_to_probe` is None. Raise `DataError` for an unusable table.

    `task_name` overrides the task of the suite. If the data set's metric is not one of this task, the task's default
    metric is used.
    """
    task_name = task_name or suite.task_of(data_set.name) or "classes"
    metric = suite.metric_of(data_set.name)
    is_stand_in = "train" not in data_set.splits
    splits = ("dev", "test") if is_stand_in else data_set.splits
    unfitted = TASK_CLASSES[task_name]((tables.LABEL_COLUMN,))
    read = partial(tables.read_labelled, check=unfitted.check)
    found: Mapping[str, tables.LabelledTable] = {split: read(data_set.file(split)) for split in splits}
    train, *others = found.values()
    task = unfitted.fitted(train)
    for table in others:
        tables.BadRowHandler().usable(table, task.target)
    is_regression = isinstance(task, Regression)
    _check_classes(data_set, suite, 0 if is_regression else len(task.labels))
    return ProbeSet(
        name=data_set.name,
        stand_in=is_stand_in,
        files=tuple(table.path for table in found.values()),
        row_counts=tuple(map(len, found.values())),
        sequences=[sequence for table in found.values() for sequence in table.sequences],
        targets=_targets(list(found.values()), task),
        num_classes=0 if is_regression else len(task.labels),
        metric=metric if metric in METRICS[task_name] else METRICS[task_name][0],
        shared_rows=tables.count_shared(found["test"], train),
        train_table=train,
    )


def _check_classes(data_set: DataSet, suite: Suite, num_classes: int) -> None:
    """Print a warning if the tables have another number of classes than the suite says."""
    facts = suite.find(data_set.name)
    expected = facts.facts.classes if facts else None
    if expected and num_classes and expected != num_classes:
        notice(f"warning: {data_set.name} has {num_classes} classes, but {expected} in {suite.name}; check --data")


def _targets(found: Sequence[tables.LabelledTable], task: Task) -> NDArray:
    if isinstance(task, Regression):
        return np.array([float(fields[0]) for table in found for fields in table.fields])
    rows = (
        (sequence, fields) for table in found for sequence, fields in zip(table.sequences, table.fields, strict=True)
    )
    return np.array([task.target(*row) for row in rows], dtype=np.int64)
