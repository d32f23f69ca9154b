"""The train, dev and test tables of a data set: read, checked against each other, labels turned into targets."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from numpy.typing import NDArray

from dnabert_rm.finetune import tables
from dnabert_rm.finetune.finetune_settings import DEV_ONE_IN, FinetuneSettings
from dnabert_rm.finetune.task_heads import TASK_CLASSES, Task
from dnabert_rm.utils.errors import is_first_rank


@dataclass(frozen=True)
class Splits:
    """The tables, and the task with the labels of the training table."""

    train: tables.LabelledTable
    dev: tables.LabelledTable
    test: tables.LabelledTable
    task: Task
    bad_rows: tables.BadRows

    def items(self) -> list[tuple[str, tables.LabelledTable]]:
        """The tables by name."""
        return [("train", self.train), ("dev", self.dev), ("test", self.test)]

    def targets(self, table: tables.LabelledTable) -> list[NDArray]:
        """The target of each row."""
        return [self.task.target(*row) for row in zip(table.sequences, table.fields, strict=True)]

    def dropped(self) -> dict[str, int]:
        """Rows left out of each file; held-out rows are of the training file."""
        return {name: self.bad_rows.count(table.path) for name, table in self.items()}


def read_splits(settings: FinetuneSettings) -> Splits:
    """Read and check the tables; `DataError` for the first fault in any of them."""
    unfitted = TASK_CLASSES[settings.task](settings.label_columns)
    bad_rows = tables.BadRows(drop=settings.bad_rows == "drop")

    def read(path: object) -> tables.LabelledTable:
        return tables.read_labelled(str(path), settings.label_columns, unfitted.check, bad_rows)

    train = read(settings.train)
    task = unfitted.fitted(train)
    if settings.dev is None:
        train, dev = tables.hold_out(train, DEV_ONE_IN, settings.seed)
        notice(f"note: no --dev: {len(dev)} of {len(train) + len(dev)} rows of {settings.train} choose the checkpoint")
    else:
        dev = bad_rows.usable(read(settings.dev), task.target)
    test = bad_rows.usable(read(settings.test), task.target)
    for path, faults in bad_rows.faults.items():
        notice(f"warning: {len(faults)} rows of {path} are left out; the first: {faults[0]}")
    return Splits(train, dev, test, task, bad_rows)


def shared_rows(splits: Splits) -> dict[str, int]:
    """How many rows of dev and test stand in train too."""
    return {name: tables.count_shared(table, splits.train) for name, table in splits.items() if name != "train"}


def warn_of_shared_rows(splits: Splits) -> None:
    """Say so where rows stand in train and in another table, since they flatter its scores."""
    for name, count in shared_rows(splits).items():
        if count:
            notice(
                f"warning: {count} of {len(getattr(splits, name))} {name} rows have a sequence that stands in train"
                f" as well: the {name} scores are better than they should be"
            )


def notice(text: str) -> None:
    """A line on standard error, from one rank alone."""
    if is_first_rank():
        print(text, file=sys.stderr)
