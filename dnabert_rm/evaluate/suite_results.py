"""Scores of finished fine-tuning runs: mean and confidence interval over seeds, per data set or task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dnabert_rm.evaluate.suite import Suite
from dnabert_rm.evaluate.suite_runs import arm_name, finished_records, read_run_file
from dnabert_rm.evaluate.suite_settings import WEIGHTS
from dnabert_rm.finetune.finetune_settings import SCORES_FILE
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.statistics import mean_and_half_width

ARMS = [arm_name(weights, overlapping) for overlapping in (True, False) for weights in WEIGHTS]
"""Names of all arms, in table order. An arm is a choice of initial weights and k-mer overlap."""

# Groups of rows. Compare rows only within a group, and only rows of `IN_SUITE` with published scores.
IN_SUITE = "suite"
STAND_INS = "stand-in"
"""Data sets trained on dev.csv because train.csv is missing."""
OTHERS = "other"
"""Data sets that the suite does not have."""


@dataclass(frozen=True)
class Result:
    """One finished fine-tuning run."""

    folder: Path
    record: dict[str, Any]
    """Content of `suite_runs.RECORD_FILE`."""
    scores: dict[str, Any]
    """Content of `finetune`'s scores.json."""
    metric: str
    """Key of the data set's metric in `scores`."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.record["data_set"]

    @property
    def score(self) -> float:
        """Test score × 100, in the metric of the data set."""
        return main_score(self.name, self.metric, self.scores)


@dataclass(frozen=True)
class TableRow:
    """Scores of one experiment arm, e.g. "scratch": on one data set, or averaged over the data sets of a task."""

    name: str
    arm: str
    group: str
    """`IN_SUITE`, `STAND_INS` or `OTHERS`. Compare scores only within a group."""
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
    family: str | None = None
    """Task of the data set; None if the suite does not have the data set."""

    @property
    def mean(self) -> float:
        """Mean score over seeds."""
        return mean_and_half_width(self.scores.values())[0]

    @property
    def half_width(self) -> float | None:
        """Half-width of the 95 % confidence interval of the mean; None for one seed."""
        return mean_and_half_width(self.scores.values())[1]


def main_score(name: str, metric: str, scores: Mapping[str, Any]) -> float:
    """Return the test score × 100 of a data set. Raise `DataError` if `scores` lacks it, or if it is undefined."""
    try:
        return 100 * float(scores["metrics"]["test"][metric])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{SCORES_FILE} of {name} has no metrics.test.{metric}; remove the file to repeat the run"
        ) from None


def load_results(output: Path, suite: Suite) -> list[Result]:
    """Return the finished runs in an output folder of `gue` or `evaluate suite`.

    The runs are sorted by data set, then by experiment arm (in the order of `ARMS`), then by seed. Runs trained on
    dev.csv come last.
    """
    results = [
        Result(folder, record, read_run_file(folder / SCORES_FILE), suite.metric_of(record["data_set"]))
        for folder, record in finished_records(output)
    ]
    return sorted(
        results,
        key=lambda result: (
            result.record["stand_in"],
            suite.order_of(result.name),
            result.name,
            ARMS.index(result.record["arm"]),
            result.record["seed"],
        ),
    )


def data_set_rows(results: Sequence[Result], suite: Suite) -> list[TableRow]:
    """Return the scores per data set and experiment arm (e.g. "scratch"), in the order of `results`."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.name, result.record["arm"]), []).append(result)
    return [_row(runs, suite.family_of(runs[0].name)) for runs in grouped.values()]


def _row(runs: Sequence[Result], family: str | None) -> TableRow:
    """Combine runs that differ only in their seed into one `TableRow`."""
    record = runs[0].record
    scores = runs[0].scores
    group = OTHERS if family is None else IN_SUITE
    return TableRow(
        name=runs[0].name,
        arm=record["arm"],
        group=STAND_INS if record["stand_in"] else group,
        metric=runs[0].metric,
        scores={run.record["seed"]: run.score for run in runs},
        train_rows=scores["splits"]["train"]["rows"],
        test_rows=scores["splits"]["test"]["rows"],
        shared_rows=scores["rows_shared_with_train"]["test"],
        cut_rows=scores["rows_cut_to_their_middle"]["test"],
        seconds=fmean(run.scores["train_seconds"] for run in runs),
        family=family,
    )


def family_rows(rows: Sequence[TableRow], suite: Suite) -> list[TableRow]:
    """Return the mean score of each task, for each experiment arm (e.g. "scratch") and each seed.

    The mean over the task's data sets is unweighted, as in the published table. A mean is returned only if
    all data sets of the task have scores for the same arm and seed. A task whose data sets are named by a wildcard has
    no mean, because their number is unknown. Scores after training on dev.csv are ignored.
    """
    family_means = []
    for family, names in suite.families.items():
        for arm in ARMS:
            parts = [row for row in rows if row.arm == arm and row.group == IN_SUITE and row.name in names]
            if len(parts) < len(names):
                continue
            seeds = sorted(set.intersection(*(set(row.scores) for row in parts)))
            scores = {seed: fmean(row.scores[seed] for row in parts) for seed in seeds}
            if scores:
                family_means.append(TableRow(family, arm, IN_SUITE, parts[0].metric, scores, family=family))
    return family_means


def difference(row: TableRow, other: TableRow) -> tuple[float, float | None] | None:
    """Return the mean score difference `row` − `other`, and the half-width of its 95 % confidence interval.

    The mean is over the seeds that `row` and `other` share. Return None if no seed is shared.
    """
    seeds = [seed for seed in row.scores if seed in other.scores]
    return mean_and_half_width(row.scores[seed] - other.scores[seed] for seed in seeds) if seeds else None


def published_rows(families: Sequence[TableRow], suite: Suite) -> list[tuple[str, str, float]]:
    """Return tuples (method, task, published mean score) for the tasks that have a row in `families`."""
    complete = {row.name for row in families}
    return [
        (method, family, scores[family])
        for method, scores in suite.published.items()
        for family in suite.families
        if family in complete and family in scores
    ]
