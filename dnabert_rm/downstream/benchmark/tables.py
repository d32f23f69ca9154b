"""The results of `gue` as files: table.csv, table.md and scores.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnabert_rm import __version__
from dnabert_rm.downstream.benchmark.markdown import Remarks, table_markdown
from dnabert_rm.downstream.benchmark.results import (
    STAND_INS,
    Result,
    Row,
    data_set_rows,
    family_rows,
    published_rows,
)
from dnabert_rm.downstream.benchmark.settings import PUBLISHED_SOURCE, family_of, metric_of
from dnabert_rm.shards import write_atomically

CSV_FILE, MARKDOWN_FILE, PICTURE_FILE, ALL_SCORES_FILE = "table.csv", "table.md", "table.png", "scores.json"
COLUMNS = (
    "row", "name", "task", "trained_on", "arm", "metric", "mean", "half_width_95", "seeds", "scores", "train_rows",
    "test_rows", "test_rows_in_train", "test_rows_cut", "train_seconds", "source",
)  # fmt: skip


def write_tables(output: Path, results: Sequence[Result], remarks: Remarks) -> None:
    """Write the three files, each at once."""
    rows = data_set_rows(results)
    families = family_rows(rows)
    texts = {
        CSV_FILE: table_csv(rows, families),
        MARKDOWN_FILE: table_markdown(results, rows, families, remarks),
        ALL_SCORES_FILE: to_json(all_scores(results, rows, families, remarks)),
    }
    for name, text in texts.items():
        write_atomically(output / name, text)


def to_json(value: Any) -> str:
    """A file's JSON text."""
    return json.dumps(value, indent=2) + "\n"


def _facts(kind: str, row: Row) -> dict[str, Any]:
    """A row of ours by the names of `COLUMNS`; what is counted by data set is None for a family."""
    facts = {
        "row": kind, "name": row.name, "task": row.name if kind == "family mean" else family_of(row.name),
        "trained_on": "dev (stand-in)" if row.group == STAND_INS else "train", "arm": row.arm, "metric": row.metric,
        "mean": row.mean, "half_width_95": row.half_width, "seeds": len(row.scores), "scores": row.scores,
        "source": f"dnabert_rm {__version__}",
    }  # fmt: skip
    counts = {
        "train_rows": row.train_rows, "test_rows": row.test_rows, "test_rows_in_train": row.shared_rows,
        "test_rows_cut": row.cut_rows, "train_seconds": row.seconds,
    }  # fmt: skip
    return facts | (dict.fromkeys(counts) if kind == "family mean" else counts)


def table_csv(rows: Sequence[Row], families: Sequence[Row]) -> str:
    """All rows in one table: ours a data set, ours a complete family, and published means of such families."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for kind, some in (("data set", rows), ("family mean", families)):
        for row in some:
            facts = _facts(kind, row)
            facts["scores"] = " ".join(f"{seed}:{value:.4f}" for seed, value in row.scores.items())
            writer.writerow({name: _cell(value) for name, value in facts.items()})
    for model, family, value in published_rows(families):
        facts = {"row": "published", "name": family, "task": family, "trained_on": "train", "arm": model}
        metric = next(row.metric for row in families if row.name == family)
        writer.writerow(facts | {"metric": metric, "mean": value, "source": PUBLISHED_SOURCE})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def all_scores(
    results: Sequence[Result], rows: Sequence[Row], families: Sequence[Row], remarks: Remarks
) -> dict[str, Any]:
    """Every run as `finetune` wrote it, with its arm and whether it is a stand-in, and the summary in numbers."""
    return {
        "runs": [
            result.scores
            | {"data_set": result.name, "arm": result.record["arm"], "stand_in": result.record["stand_in"]}
            | {"main_metric": metric_of(result.name), "folder": str(result.folder)}
            for result in results
        ],
        "summary": [_facts("data set", row) for row in rows] + [_facts("family mean", row) for row in families],
        "published": [
            {"model": model, "family": family, "mean": value, "source": PUBLISHED_SOURCE}
            for model, family, value in published_rows(families)
        ],
        "not_run": dict(remarks.not_run),
        "failed": dict(remarks.failed),
    }
