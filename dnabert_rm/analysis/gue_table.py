"""Scores from `evaluate suite` for the report, with the results of several folders side by side. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import METRIC_TITLES
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import read_json

TABLE_NAME, SCORES_NAME = "table.csv", "scores.json"
DATA_SET, FAMILY, PUBLISHED = "data set", "family mean", "published"
FIRST_SUITE = "GUE"
"""Suite of a scores.json that names none, from versions that had no other suite."""
IN_SUITE, STAND_IN, OTHER = "suite", "stand-in", "other"
_REQUIRED_COLUMNS = (
    "row",
    "name",
    "task",
    "trained_on",
    "arm",
    "metric",
    "mean",
    "half_width_95",
    "seeds",
    "train_rows",
    "test_rows",
)


@dataclass(frozen=True)
class GueTable:
    """The results in one output folder of `dnabert-rm evaluate suite`."""

    name: str
    rows: list[dict[str, str]]
    """Rows of table.csv: text of each cell, keyed by column."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about data sets that were not run and runs that failed."""
    suite: str = FIRST_SUITE
    """Name of the benchmark suite."""


def read_gue(folder: Path, name: str) -> GueTable:
    """Read an output folder of `dnabert-rm evaluate suite`. Raise `DataError` if table.csv is missing or damaged."""
    path = folder / TABLE_NAME
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {why}; pass an output folder of `dnabert-rm evaluate suite` to --gue") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a valid CSV file ({error}); run `dnabert-rm evaluate suite` again") from None
    if missing := [column for column in _REQUIRED_COLUMNS if column not in (reader.fieldnames or [])]:
        advice = "pass an output folder of `dnabert-rm evaluate suite` to --gue"
        raise DataError(f"{path}: has no column {missing[0]}; {advice}")
    for line, row in enumerate(rows, 2):
        try:
            row |= {"mean": f"{float(row['mean']):.2f}"}
            row |= {"half_width_95": f"{float(row['half_width_95']):.2f}" if row["half_width_95"] else ""}
        except ValueError:
            raise DataError(
                f"{path}:{line}: mean or half_width_95 is not a number; run `dnabert-rm evaluate suite` again"
            ) from None
    path = folder / SCORES_NAME
    if not path.exists():
        return GueTable(name, rows, [f"{SCORES_NAME} is missing, so data sets that were not run are not listed."])
    content = read_json(path, advice="run `dnabert-rm evaluate suite` again")
    return GueTable(name, rows, _remarks(content), content.get("suite", FIRST_SUITE))


def _metric_title(metric: str) -> str:
    return f"{METRIC_TITLES.get(metric, metric)} × 100"


def _remarks(content: Mapping[str, Any]) -> list[str]:
    parts = (("not run", content.get("not_run") or {}), ("failed", content.get("failed") or {}))
    return [f"{name}: {kind}: {reason}." for kind, reasons in parts for name, reason in reasons.items()]


def group_of(row: dict[str, str]) -> str:
    """Return the group of a row of table.csv: `IN_SUITE`, `STAND_IN` or `OTHER`.

    `STAND_IN` means that the model was trained on dev.csv, so the scores are not comparable with the suite's. `OTHER`
    means that the suite does not have the data set.
    """
    if "stand-in" in row["trained_on"]:
        return STAND_IN
    return IN_SUITE if row["task"] else OTHER


def columns(tables: Sequence[GueTable]) -> list[tuple[int, str]]:
    """Return the score columns of the report as pairs (index into `tables`, arm).

    An arm is a kind of fine-tuning run, e.g. "scratch". Published models have no score column.
    """
    return [
        (number, arm)
        for number, table in enumerate(tables)
        for arm in dict.fromkeys(row["arm"] for row in table.rows if row["row"] != PUBLISHED)
    ]


def column_titles(tables: Sequence[GueTable]) -> list[str]:
    """Return the title of each score column, e.g. "scratch", or "folder: scratch" if there are several tables."""
    return [f"{tables[number].name}: {arm}" if len(tables) > 1 else arm for number, arm in columns(tables)]


def pivot(tables: Sequence[GueTable], kind: str, group: str = IN_SUITE) -> list[list[str | None]]:
    """Return the rows of one table of the report, each as a list of cells.

    `kind` is `DATA_SET` or `FAMILY` (task means). `group` is a value of `group_of`. The cells are: name, metric, one
    score ± half-width per score column, number of seeds, number of training rows, number of test rows.
    """
    # Rows by (name, metric), then by column.
    arms: dict[tuple[str, str], dict[tuple[int, str], dict[str, str]]] = {}
    for number, table in enumerate(tables):
        for row in table.rows:
            if row["row"] == kind and group_of(row) == group:
                arms.setdefault((row["name"], row["metric"]), {})[number, row["arm"]] = row
    lines = []
    for (name, metric), row_of in arms.items():
        first = next(iter(row_of.values()))
        scores = [_score(row_of[column]) if column in row_of else None for column in columns(tables)]
        seeds = " / ".join(row_of[column]["seeds"] if column in row_of else "0" for column in columns(tables))
        lines.append([name, _metric_title(metric), *scores, seeds, first["train_rows"], first["test_rows"]])
    return lines


def published(tables: Sequence[GueTable]) -> list[list[str | None]]:
    """Return the published task means, each as a list: task, metric, model, mean, source."""
    rows = [row for table in tables for row in table.rows if row["row"] == PUBLISHED]
    unique = {(row["name"], row["arm"], row.get("source")): row for row in rows}
    return [
        [row["name"], _metric_title(row["metric"]), row["arm"], row["mean"], row.get("source")]
        for row in unique.values()
    ]


def _score(row: dict[str, str]) -> str:
    return row["mean"] + (f" ± {row['half_width_95']}" if row["half_width_95"] else "")
