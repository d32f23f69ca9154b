"""Read and check the train, dev and test tables of one data set, and convert labels to targets."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from numpy.typing import NDArray

from dnabert_rm.finetune import tables
from dnabert_rm.finetune.finetune_settings import DEV_ONE_IN, FinetuneSettings
from dnabert_rm.finetune.tasks import TASK_CLASSES, Task
from dnabert_rm.utils.errors import is_first_rank


@dataclass(frozen=True)
class Splits:
    """The train, dev and test tables of one data set, and the task with the labels of the training table."""

    train: tables.LabelledTable
    dev: tables.LabelledTable
    test: tables.LabelledTable
    task: Task
    bad_rows: tables.BadRowHandler

    def items(self) -> list[tuple[str, tables.LabelledTable]]:
        """Return the name and table of each split."""
        return [("train", self.train), ("dev", self.dev), ("test", self.test)]

    def targets(self, table: tables.LabelledTable) -> list[NDArray]:
        """Return the target of each row of `table`."""
        return [self.task.target(*row) for row in zip(table.sequences, table.fields, strict=True)]

    def dropped(self) -> dict[str, int]:
        """Return the number of unusable rows that were dropped from each split's file.

        Without `--dev`, train and dev come from the same file, so they have the same number of dropped rows.
        """
        return {name: self.bad_rows.count(table.path) for name, table in self.items()}


def read_splits(settings: FinetuneSettings) -> Splits:
    """Read and check the train, dev and test tables.

    Raises `DataError` for an unusable table. An unusable row also raises `DataError`, unless `--bad-rows drop` is set.
    """
    unfitted = TASK_CLASSES[settings.task](settings.label_columns)
    bad_rows = tables.BadRowHandler(drop=settings.bad_rows == "drop")

    def read(path: object) -> tables.LabelledTable:
        return tables.read_labelled(str(path), settings.label_columns, unfitted.check, bad_rows)

    train = read(settings.train)
    task = unfitted.fitted(train)
    if settings.dev is None:
        train, dev = tables.hold_out(train, DEV_ONE_IN, settings.seed)
        notice(
            f"note: --dev is not set, so {len(dev)} of {len(train) + len(dev)} rows of {settings.train} are held out to"
            " choose the checkpoint"
        )
    else:
        dev = bad_rows.usable(read(settings.dev), task.target)
    test = bad_rows.usable(read(settings.test), task.target)
    for path, errors in bad_rows.errors.items():
        notice(f"warning: {len(errors)} rows of {path} are left out; the first error: {errors[0]}")
    return Splits(train, dev, test, task, bad_rows)


def shared_rows(splits: Splits) -> dict[str, int]:
    """Return how many rows of dev and of test have a sequence that is also in train."""
    return {name: tables.count_shared(table, splits.train) for name, table in splits.items() if name != "train"}


def warn_of_shared_rows(splits: Splits) -> None:
    """Warn if dev or test shares sequences with train, because shared sequences inflate the scores."""
    for name, count in shared_rows(splits).items():
        if count:
            notice(
                f"warning: {count} of {len(getattr(splits, name))} {name} rows have a sequence that is also in train;"
                f" the {name} scores are inflated"
            )


def notice(text: str) -> None:
    """Print a line to standard error, on the first rank only."""
    if is_first_rank():
        print(text, file=sys.stderr)
