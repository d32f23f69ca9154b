"""The tables that `dnabert-rm gue` wrote, read for a report: arms of several folders side by side. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import read_json

TABLE_NAME, SCORES_NAME = "table.csv", "scores.json"
METRICS = {"mcc": "MCC × 100", "f1_macro": "macro F1 × 100"}
DATA_SET, FAMILY, PUBLISHED = "data set", "family mean", "published"
IN_GUE, STAND_IN, OTHER = "GUE", "stand-in", "other"
_NEEDED = (
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
    """One folder's rows, as text by the names of table.csv's columns, and what was not run or failed."""

    name: str
    rows: list[dict[str, str]]
    remarks: list[str] = field(default_factory=list)


def read_gue(folder: Path, name: str) -> GueTable:
    """Read a folder; `DataError` where it has no table or another one."""
    path = folder / TABLE_NAME
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {why}; name the --output of `dnabert-rm gue` with --gue") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if missing := [column for column in _NEEDED if column not in (reader.fieldnames or [])]:
        raise DataError(f"{path}: has no column {missing[0]}; name the --output of `dnabert-rm gue` with --gue")
    for line, row in enumerate(rows, 2):
        try:
            row |= {"mean": f"{float(row['mean']):.2f}"}
            row |= {"half_width_95": f"{float(row['half_width_95']):.2f}" if row["half_width_95"] else ""}
        except ValueError:
            raise DataError(
                f"{path}:{line}: its mean or half_width_95 is no number; run `dnabert-rm gue` again"
            ) from None
    return GueTable(name, rows, _remarks(folder / SCORES_NAME))


def _remarks(path: Path) -> list[str]:
    if not path.exists():
        return [f"{SCORES_NAME} is missing there, so what was not run is not known."]
    content = read_json(path, advice="run `dnabert-rm gue` again")
    parts = (("not run", content.get("not_run") or {}), ("failed", content.get("failed") or {}))
    return [f"{name}: {kind}: {why}." for kind, found in parts for name, why in found.items()]


def group_of(row: dict[str, str]) -> str:
    """What a row may be compared with: GUE's numbers, other stand-ins, or nothing outside."""
    if "stand-in" in row["trained_on"]:
        return STAND_IN
    return IN_GUE if row["task"] else OTHER


def columns(tables: Sequence[GueTable]) -> list[tuple[int, str]]:
    """The arms to show: which table, and the arm's name there; published models have none."""
    return [
        (number, arm)
        for number, table in enumerate(tables)
        for arm in dict.fromkeys(row["arm"] for row in table.rows if row["row"] != PUBLISHED)
    ]


def column_titles(tables: Sequence[GueTable]) -> list[str]:
    """A title for each of `columns`: the arm, after the folder's name where there are several."""
    return [f"{tables[number].name}: {arm}" if len(tables) > 1 else arm for number, arm in columns(tables)]


def pivot(tables: Sequence[GueTable], kind: str, group: str = IN_GUE) -> list[list[str | None]]:
    """Rows of one kind and group: name, metric, a score ± half-width an arm, seeds, rows for training and test."""
    found: dict[tuple[str, str], dict[tuple[int, str], dict[str, str]]] = {}
    for number, table in enumerate(tables):
        for row in table.rows:
            if row["row"] == kind and group_of(row) == group:
                found.setdefault((row["name"], row["metric"]), {})[number, row["arm"]] = row
    lines = []
    for (name, metric), own in found.items():
        first = next(iter(own.values()))
        scores = [_score(own[column]) if column in own else None for column in columns(tables)]
        seeds = " / ".join(own[column]["seeds"] if column in own else "0" for column in columns(tables))
        lines.append([name, METRICS.get(metric, metric), *scores, seeds, first["train_rows"], first["test_rows"]])
    return lines


def published(tables: Sequence[GueTable]) -> list[list[str | None]]:
    """Published means beside complete families: family, metric, model, mean, source."""
    found = {(row["name"], row["arm"]): row for table in tables for row in table.rows if row["row"] == PUBLISHED}
    return [
        [row["name"], METRICS.get(row["metric"], row["metric"]), row["arm"], row["mean"], row.get("source")]
        for row in found.values()
    ]


def _score(row: dict[str, str]) -> str:
    return row["mean"] + (f" ± {row['half_width_95']}" if row["half_width_95"] else "")
