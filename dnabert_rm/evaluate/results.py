"""Scores of finished runs → one row a data set and arm: mean over seeds, its interval, means of whole families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dnabert_rm.evaluate.gue_suite import FAMILIES, GUE, METRIC_TITLES, PUBLISHED, family_of, metric_of
from dnabert_rm.evaluate.suite_runs import WEIGHTS, arm_name, finished_records, read_run_file
from dnabert_rm.finetune.finetune_settings import SCORES_FILE
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.statistics import mean_and_half_width

ARMS = [arm_name(weights, overlapping) for overlapping in (True, False) for weights in WEIGHTS]
"""All arms, in the order of tables."""
IN_GUE, STAND_INS, OTHERS = "GUE", "stand-in", "other"
"""What a row may be compared with: GUE numbers, other stand-ins, or nothing outside."""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    folder: Path
    record: dict[str, Any]
    """As `runs.RECORD_FILE` has it."""
    scores: dict[str, Any]
    """As `finetune` wrote them."""

    @property
    def name(self) -> str:
        """The data set."""
        return self.record["data_set"]

    @property
    def score(self) -> float:
        """The data set's metric on test × 100."""
        return main_score(self.name, self.scores)[1]


@dataclass(frozen=True)
class Row:
    """One line of the table: a data set, or a whole family, in one arm."""

    name: str
    arm: str
    group: str
    """`IN_GUE`, `STAND_INS` or `OTHERS`."""
    metric: str
    scores: dict[int, float]
    """Metric × 100 by seed."""
    train_rows: int = 0
    test_rows: int = 0
    shared_rows: int = 0
    """Test rows whose sequence stands in train."""
    cut_rows: int = 0
    """Test rows with more tokens than the model takes: it saw their middle."""
    seconds: float = 0.0
    """Of training, the mean over seeds."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean_and_half_width(self.scores.values())[0]

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean; None for one seed."""
        return mean_and_half_width(self.scores.values())[1]


def main_score(name: str, scores: Mapping[str, Any]) -> tuple[str, float]:
    """Title and value × 100 of a data set's metric on test; `DataError` where scores.json lacks it."""
    metric = metric_of(name)
    try:
        return METRIC_TITLES[metric], 100 * float(scores["metrics"]["test"][metric])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{SCORES_FILE} of {name} has no metrics.test.{metric}; remove it, and run again") from None


def load_results(output: Path) -> list[Result]:
    """Every finished run of an output folder, in the order of tables, seeds in order of numbers."""
    coordinates = {name: number for number, name in enumerate(GUE)}
    results = [
        Result(folder, record, read_run_file(folder / SCORES_FILE)) for folder, record in finished_records(output)
    ]
    return sorted(
        results,
        key=lambda result: (
            result.record["stand_in"], coordinates.get(result.name, len(coordinates)), result.name,
            ARMS.index(result.record["arm"]), result.record["seed"],
        ),
    )  # fmt: skip


def data_set_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each data set and arm, in the order of the results."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.name, result.record["arm"]), []).append(result)
    return [_row(runs) for runs in grouped.values()]


def _row(runs: Sequence[Result]) -> Row:
    record, scores = runs[0].record, runs[0].scores
    return Row(
        name=runs[0].name,
        arm=record["arm"],
        group=STAND_INS if record["stand_in"] else IN_GUE if runs[0].name in GUE else OTHERS,
        metric=metric_of(runs[0].name),
        scores={run.record["seed"]: run.score for run in runs},
        train_rows=scores["splits"]["train"]["rows"],
        test_rows=scores["splits"]["test"]["rows"],
        shared_rows=scores["rows_shared_with_train"]["test"],
        cut_rows=scores["rows_cut_to_their_middle"]["test"],
        seconds=fmean(run.scores["train_seconds"] for run in runs),
    )


def family_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each family and arm of which every data set was run, stand-ins not counted.

    Its score for a seed is the plain mean over the data sets, as in the published table; only seeds that all of them
    have count.
    """
    made = []
    for family in FAMILIES:
        names = [name for name in GUE if family_of(name) == family]
        for arm in ARMS:
            parts = [row for row in rows if row.arm == arm and row.group == IN_GUE and row.name in names]
            if len(parts) < len(names):
                continue
            seeds = sorted(set.intersection(*(set(row.scores) for row in parts)))
            scores = {seed: fmean(row.scores[seed] for row in parts) for seed in seeds}
            if scores:
                made.append(Row(family, arm, IN_GUE, parts[0].metric, scores))
    return made


def difference(row: Row, other: Row) -> tuple[float, float | None] | None:
    """Mean and half width of `row` − `other` over the seeds that both have; None where they have none in common."""
    seeds = [seed for seed in row.scores if seed in other.scores]
    return mean_and_half_width(row.scores[seed] - other.scores[seed] for seed in seeds) if seeds else None


def published_rows(families: Sequence[Row]) -> list[tuple[str, str, float]]:
    """Model, family and mean as published, for the families that were run completely."""
    complete = {row.name for row in families}
    return [
        (model, family, value)
        for model, values in PUBLISHED.items()
        for family, value in zip(FAMILIES, values, strict=True)
        if family in complete
    ]
