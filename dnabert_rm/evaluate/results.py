"""Scores of finished fine-tuning runs: mean and confidence interval over seeds, per data set or task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dnabert_rm.evaluate.gue_suite import FAMILIES, GUE, METRIC_TITLES, PUBLISHED, family_of, metric_of
from dnabert_rm.evaluate.suite_runs import arm_name, finished_records, read_run_file
from dnabert_rm.evaluate.suite_settings import WEIGHTS
from dnabert_rm.finetune.finetune_settings import SCORES_FILE
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.statistics import mean_and_half_width

ARMS = [arm_name(weights, overlapping) for overlapping in (True, False) for weights in WEIGHTS]
"""Names of all arms, in table order. An arm is a choice of initial weights and k-mer overlap."""

# Groups of rows. Compare rows only within a group, and only rows of `IN_GUE` with published scores.
IN_GUE = "GUE"
STAND_INS = "stand-in"
"""Data sets trained on dev.csv because train.csv is missing."""
OTHERS = "other"
"""Data sets that are not in GUE."""


@dataclass(frozen=True)
class Result:
    """One finished fine-tuning run."""

    folder: Path
    record: dict[str, Any]
    """Content of `suite_runs.RECORD_FILE`."""
    scores: dict[str, Any]
    """Content of `finetune`'s scores.json."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.record["data_set"]

    @property
    def score(self) -> float:
        """Test score × 100, in the metric of the data set."""
        return main_score(self.name, self.scores)[1]


@dataclass(frozen=True)
class TableRow:
    """Scores of one experiment arm, e.g. "scratch": on one data set, or averaged over the data sets of a task."""

    name: str
    arm: str
    group: str
    """`IN_GUE`, `STAND_INS` or `OTHERS`. Compare scores only within a group."""
    metric: str
    scores: dict[int, float]
    """Score × 100 by seed."""
    train_rows: int = 0
    test_rows: int = 0
    shared_rows: int = 0
    """Number of test rows whose sequence is also in train."""
    cut_rows: int = 0
    """Number of test rows cut to their middle because they are longer than the model's input."""
    seconds: float = 0.0
    """Mean training time over seeds, in seconds."""

    @property
    def mean(self) -> float:
        """Mean score over seeds."""
        return mean_and_half_width(self.scores.values())[0]

    @property
    def half_width(self) -> float | None:
        """Half-width of the 95 % confidence interval of the mean; None for one seed."""
        return mean_and_half_width(self.scores.values())[1]


def main_score(name: str, scores: Mapping[str, Any]) -> tuple[str, float]:
    """Return the title of a data set's metric and the test score × 100. Raise `DataError` if there is no such score."""
    metric = metric_of(name)
    try:
        return METRIC_TITLES[metric], 100 * float(scores["metrics"]["test"][metric])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{SCORES_FILE} of {name} has no metrics.test.{metric}; remove the file to repeat the run"
        ) from None


def load_results(output: Path) -> list[Result]:
    """Return the finished runs in an output folder of `dnabert-rm gue`.

    The runs are sorted by data set, then by experiment arm (in the order of `ARMS`), then by seed. Runs trained on
    dev.csv come last.
    """
    order = {name: index for index, name in enumerate(GUE)}
    results = [
        Result(folder, record, read_run_file(folder / SCORES_FILE)) for folder, record in finished_records(output)
    ]
    return sorted(
        results,
        key=lambda result: (
            result.record["stand_in"],
            order.get(result.name, len(order)),
            result.name,
            ARMS.index(result.record["arm"]),
            result.record["seed"],
        ),
    )


def data_set_rows(results: Sequence[Result]) -> list[TableRow]:
    """Return the scores per data set and experiment arm (e.g. "scratch"), in the order of `results`."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.name, result.record["arm"]), []).append(result)
    return [_row(runs) for runs in grouped.values()]


def _row(runs: Sequence[Result]) -> TableRow:
    """Combine runs that differ only in their seed into one `TableRow`."""
    record = runs[0].record
    scores = runs[0].scores
    group = IN_GUE if runs[0].name in GUE else OTHERS
    return TableRow(
        name=runs[0].name,
        arm=record["arm"],
        group=STAND_INS if record["stand_in"] else group,
        metric=metric_of(runs[0].name),
        scores={run.record["seed"]: run.score for run in runs},
        train_rows=scores["splits"]["train"]["rows"],
        test_rows=scores["splits"]["test"]["rows"],
        shared_rows=scores["rows_shared_with_train"]["test"],
        cut_rows=scores["rows_cut_to_their_middle"]["test"],
        seconds=fmean(run.scores["train_seconds"] for run in runs),
    )


def family_rows(rows: Sequence[TableRow]) -> list[TableRow]:
    """Return the mean score of each task, for each experiment arm (e.g. "scratch") and each seed.

    The mean over the task's data sets is unweighted, as in the published table. A mean is returned only if
    all data sets of the task have scores for the same arm and seed. Scores after training on dev.csv are ignored.
    """
    family_means = []
    for family in FAMILIES:
        names = [name for name in GUE if family_of(name) == family]
        for arm in ARMS:
            parts = [row for row in rows if row.arm == arm and row.group == IN_GUE and row.name in names]
            if len(parts) < len(names):
                continue
            seeds = sorted(set.intersection(*(set(row.scores) for row in parts)))
            scores = {seed: fmean(row.scores[seed] for row in parts) for seed in seeds}
            if scores:
                family_means.append(TableRow(family, arm, IN_GUE, parts[0].metric, scores))
    return family_means


def difference(row: TableRow, other: TableRow) -> tuple[float, float | None] | None:
    """Return the mean score difference `row` − `other`, and the half-width of its 95 % confidence interval.

    The mean is over the seeds that `row` and `other` share. Return None if no seed is shared.
    """
    seeds = [seed for seed in row.scores if seed in other.scores]
    return mean_and_half_width(row.scores[seed] - other.scores[seed] for seed in seeds) if seeds else None


def published_rows(families: Sequence[TableRow]) -> list[tuple[str, str, float]]:
    """Return tuples (model, task, published mean score) for the tasks in `families`."""
    complete = {row.name for row in families}
    return [
        (model, family, value)
        for model, values in PUBLISHED.items()
        for family, value in zip(FAMILIES, values, strict=True)
        if family in complete
    ]
