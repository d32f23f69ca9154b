"""The result files of `gue` and `evaluate suite`: table.csv and scores.json for programs, table.md for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnabert_rm import __version__
from dnabert_rm.evaluate.data_sets import STAND_IN
from dnabert_rm.evaluate.suite import METRICS, Suite
from dnabert_rm.evaluate.suite_results import (
    ARMS,
    IN_SUITE,
    OTHERS,
    STAND_INS,
    Result,
    TableRow,
    data_set_rows,
    difference,
    family_rows,
    published_rows,
)
from dnabert_rm.evaluate.suite_runs import arm_name, resolve_settings
from dnabert_rm.finetune.finetune_settings import METRIC_TITLES
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.statistics import mean_and_half_width

CSV_FILE = "table.csv"
MARKDOWN_FILE = "table.md"
PLOT_FILE = "table.png"
ALL_SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class UnfinishedRuns:
    """Reasons why data sets or runs have no result."""

    not_run: Mapping[str, str] = field(default_factory=dict)
    """Reason for each data set that was not run, keyed by its name."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Reason for each failed run, keyed by `Run.title`."""


def write_tables(output: Path, suite: Suite, results: Sequence[Result], unfinished: UnfinishedRuns) -> None:
    """Write table.csv, table.md and scores.json to the folder `output`."""
    rows = data_set_rows(results, suite)
    families = family_rows(rows, suite)
    texts = {
        CSV_FILE: table_csv(suite, rows, families),
        MARKDOWN_FILE: table_markdown(suite, results, rows, families, unfinished),
        ALL_SCORES_FILE: to_json(all_scores(suite, results, rows, families, unfinished)),
    }
    for name, text in texts.items():
        write_text(output / name, text)


def to_json(value: Any) -> str:
    """Return a value as indented JSON text that ends in a newline."""
    return json.dumps(value, indent=2) + "\n"


# ---- table.csv and scores.json

DATA_SET_ROW = "data set"
FAMILY_ROW = "family mean"
PUBLISHED_ROW = "published"
CSV_COLUMNS = (
    "row",
    "name",
    "task",
    "trained_on",
    "arm",
    "metric",
    "mean",
    "half_width_95",
    "seeds",
    "scores",
    "train_rows",
    "test_rows",
    "test_rows_in_train",
    "test_rows_cut",
    "train_seconds",
    "source",
)


def table_csv(suite: Suite, rows: Sequence[TableRow], families: Sequence[TableRow]) -> str:
    """Return the text of table.csv.

    An arm is `pretrained` or `scratch`, with overlapping or non-overlapping k-mers. The first rows contain the scores
    of each data set and arm. Next come the mean scores of each task and arm, then the published means of the same
    tasks.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for kind, rows_of_kind in ((DATA_SET_ROW, rows), (FAMILY_ROW, families)):
        for row in rows_of_kind:
            columns = _columns(kind, row)
            columns["scores"] = " ".join(f"{seed}:{value:.4f}" for seed, value in row.scores.items())
            writer.writerow({name: _csv_cell(value) for name, value in columns.items()})
    for model, family, value in published_rows(families, suite):
        writer.writerow(
            {
                "row": PUBLISHED_ROW,
                "name": family,
                "task": family,
                "trained_on": "train",
                "arm": model,
                "metric": next(row.metric for row in families if row.name == family),
                "mean": value,
                "source": suite.source,
            }
        )
    return stream.getvalue()


def _columns(kind: str, row: TableRow) -> dict[str, Any]:
    """Return the cells of one row of table.csv, keyed by column name.

    For the mean of a task, the numbers of sequences and the training time are None.
    """
    is_family = kind == FAMILY_ROW
    columns = {
        "row": kind,
        "name": row.name,
        "task": row.family,
        "trained_on": "dev (stand-in)" if row.group == STAND_INS else "train",
        "arm": row.arm,
        "metric": row.metric,
        "mean": row.mean,
        "half_width_95": row.half_width,
        "seeds": len(row.scores),
        "scores": row.scores,
        "source": f"dnabert_rm {__version__}",
    }
    counts = {
        "train_rows": row.train_rows,
        "test_rows": row.test_rows,
        "test_rows_in_train": row.shared_rows,
        "test_rows_cut": row.cut_rows,
        "train_seconds": row.seconds,
    }
    return columns | (dict.fromkeys(counts) if is_family else counts)


def _csv_cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def all_scores(
    suite: Suite,
    results: Sequence[Result],
    rows: Sequence[TableRow],
    families: Sequence[TableRow],
    unfinished: UnfinishedRuns,
) -> dict[str, Any]:
    """Return the content of scores.json: suite, finished runs, rows of table.csv, and reasons for missing results."""
    return {
        "suite": suite.name,
        "runs": [
            result.scores
            | {"data_set": result.name, "arm": result.record["arm"], "stand_in": result.record["stand_in"]}
            | {"main_metric": result.metric, "folder": str(result.folder)}
            for result in results
        ],
        "summary": [_columns(DATA_SET_ROW, row) for row in rows] + [_columns(FAMILY_ROW, row) for row in families],
        "published": [
            {"model": model, "family": family, "mean": value, "source": suite.source}
            for model, family, value in published_rows(families, suite)
        ],
        "not_run": dict(unfinished.not_run),
        "failed": dict(unfinished.failed),
    }


# ---- table.md

FAMILY_HEADING = "Mean of each task with scores for all its data sets"


def _headings(suite: Suite) -> dict[str, str]:
    """Return the heading of each group of rows."""
    stand_ins = "Stand-ins: trained on dev, tested on test, because train is missing. Compare them only with each other"
    return {
        IN_SUITE: f"{suite.name} data sets",
        STAND_INS: stand_ins,
        OTHERS: f"Data sets that are not in {suite.name}, with default settings",
    }


def table_markdown(
    suite: Suite,
    results: Sequence[Result],
    rows: Sequence[TableRow],
    families: Sequence[TableRow],
    unfinished: UnfinishedRuns,
) -> str:
    """Return the text of table.md.

    The order of the tables is: data sets of the suite, task means, data sets that use dev.csv for training, data sets
    that the suite does not have. Notes follow the tables.
    """
    headings = _headings(suite)
    tables = {group: _group_table(group, [row for row in rows if row.group == group]) for group in headings}
    family_heading = FAMILY_HEADING + (", and published means" if suite.published else "")
    sections = [
        (headings[IN_SUITE], tables[IN_SUITE]),
        (family_heading, _family_table(suite, families) if families else ""),
        (headings[STAND_INS], tables[STAND_INS]),
        (headings[OTHERS], tables[OTHERS]),
    ]
    notes = [*_notes(suite, results, rows, families), *_unfinished_notes(suite, unfinished, rows)]
    sections.append(("Notes", "\n".join(f"- {note}" for note in notes)))
    parts = [f"## {heading}\n\n{text}" for heading, text in sections if text]
    return "\n\n".join([f"# Fine-tuning on {suite.name}", *parts]) + "\n"


def _group_table(group: str, rows: Sequence[TableRow]) -> str:
    """Return a Markdown table with one line per data set, or an empty string if `rows` is empty.

    Each experiment arm, e.g. "scratch", has a column with its mean score.
    """
    if not rows:
        return ""
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    pairs = [(arm_name("pretrained", overlapping), arm_name("scratch", overlapping)) for overlapping in (True, False)]
    pairs = [pair for pair in pairs if set(pair) <= set(arms)]
    text_columns = ["data set", "task", "metric"] if group == IN_SUITE else ["data set", "metric"]
    number_columns = [*arms, *(f"{a} − {b}" for a, b in pairs)]
    number_columns += ["seeds", "train rows", "test rows", "test rows in train"]
    lines = [
        _line([*text_columns, *number_columns]),
        _line(["---"] * len(text_columns) + ["---:"] * len(number_columns)),
    ]
    for name in dict.fromkeys(row.name for row in rows):
        by_arm = {row.arm: row for row in rows if row.name == name}
        first = next(iter(by_arm.values()))
        cells = [f"{name} ({STAND_IN})" if group == STAND_INS else name]
        if group == IN_SUITE:
            cells.append(first.family or "")
        cells.append(f"{METRIC_TITLES[first.metric]} × 100")
        cells += [_score(mean_and_half_width(by_arm[arm].scores.values()) if arm in by_arm else None) for arm in arms]
        for a, b in pairs:
            cells.append(_score(difference(by_arm[a], by_arm[b]) if {a, b} <= set(by_arm) else None, sign="+"))
        seeds = dict.fromkeys(str(len(by_arm[arm].scores)) if arm in by_arm else "0" for arm in arms)
        cells += [" / ".join(seeds), f"{first.train_rows:,}", f"{first.test_rows:,}", f"{first.shared_rows:,}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _family_table(suite: Suite, families: Sequence[TableRow]) -> str:
    """Return a Markdown table of task means with one column per task.

    Each experiment arm, e.g. "scratch", has a line, and so does each published model.
    """
    names = [family for family in suite.families if any(row.name == family for row in families)]
    lines = [_line(["", *names]), _line(["---", *["---:"] * len(names)])]
    for arm in ARMS:
        by_family = {row.name: row for row in families if row.arm == arm}
        if by_family:
            scores = [
                mean_and_half_width(by_family[name].scores.values()) if name in by_family else None for name in names
            ]
            lines.append(_line([arm, *map(_score, scores)]))
    for method in suite.published:
        values = {family: value for other, family, value in published_rows(families, suite) if other == method}
        if values:
            cells = (f"{values[name]:.2f}" if name in values else _score(None) for name in names)
            lines.append(_line([f"{method}, published", *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _score(value: tuple[float, float | None] | None, sign: str = "") -> str:
    """Format a mean and the half-width of its confidence interval. Return a dash for None.

    `sign` is the sign option of the number format, e.g. "+".
    """
    if value is None:
        return "–"
    mean, half_width = value
    return f"{mean:{sign}.2f}" + ("" if half_width is None else f" ± {half_width:.2f}")


def _notes(
    suite: Suite, results: Sequence[Result], rows: Sequence[TableRow], families: Sequence[TableRow]
) -> Iterator[str]:
    """Yield the notes of table.md that explain the scores."""
    if results:
        model = results[0].scores["settings"]["model"]
        sha256 = results[0].record["model_sha256"]
        yield f"Model: {model} (SHA-256 {sha256[:12]}…); scratch is the same architecture with random weights."
    tasks = dict.fromkeys(suite.task_of(row.name) or "classes" for row in rows)
    chosen_by = " or ".join(METRIC_TITLES[METRICS[task][0]] for task in tasks or ("classes",))
    yield (
        f"Scores are on test, computed once per run. The checkpoint was chosen by {chosen_by} on dev. ± is the"
        " half-width of the 95 % confidence interval of the mean over seeds (Student's t). A single seed has no"
        " interval."
    )
    if published_rows(families, suite):
        yield f"Published means: {suite.source}; {_metrics_of_families(suite)}."
    if any(row.shared_rows for row in rows):
        yield "Test rows whose sequence is also in train (last column) inflate the scores of every arm."
    if cut := [row.name for row in rows if row.cut_rows]:
        names = ", ".join(dict.fromkeys(cut))
        yield f"Sequences longer than the model's input were cut to their middle: {names}."
    yield from dict.fromkeys(found.facts.note for row in rows if (found := suite.find(row.name)) and found.facts.note)
    for text, names_with_change in _changed_settings(suite, results).items():
        yield f"Settings that differ from {suite.name}'s for {', '.join(names_with_change)}: {text}."


def _metrics_of_families(suite: Suite) -> str:
    """Return the metrics of the published scores, e.g. "MCC × 100, or macro F1 × 100 for Covid"."""
    by_metric: dict[str, list[str]] = {}
    for family, names in suite.families.items():
        by_metric.setdefault(suite.metric_of(names[0]), []).append(family)
    main = max(by_metric, key=lambda metric: len(by_metric[metric]))
    others = [f"{METRIC_TITLES[key]} × 100 for {', '.join(names)}" for key, names in by_metric.items() if key != main]
    return ", or ".join([f"{METRIC_TITLES[main]} × 100", *others])


def _changed_settings(suite: Suite, results: Sequence[Result]) -> dict[str, list[str]]:
    """Return the data sets trained with other settings than the suite's, keyed by these settings, e.g. "epochs 5"."""
    changed: dict[str, list[str]] = {}
    for name, settings in {result.name: result.record["settings"] for result in results}.items():
        own = resolve_settings(name, suite, {})
        text = ", ".join(f"{key} {settings.get(key)}" for key in own if settings.get(key) != own[key])
        if text:
            changed.setdefault(text, []).append(name)
    return changed


def _unfinished_notes(suite: Suite, unfinished: UnfinishedRuns, rows: Sequence[TableRow]) -> Iterator[str]:
    for name, reason in unfinished.not_run.items():
        yield f"Not run: {name}: {reason}."
    for title, reason in unfinished.failed.items():
        yield f"Failed: {title}: {reason}."
    mentioned = {row.name for row in rows} | set(unfinished.not_run)
    if absent := [name for name in suite.names if name not in mentioned]:
        count = f"{len(absent)} of {len(suite.names)}"
        yield f"{suite.name} data sets without a result ({count}): {', '.join(absent)}."
