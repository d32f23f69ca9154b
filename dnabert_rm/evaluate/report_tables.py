"""The results of `gue` as files: table.csv, table.md and scores.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnabert_rm import __version__
from dnabert_rm.evaluate.gue_suite import (
    FAMILIES,
    GUE,
    METRIC_TITLES,
    PUBLISHED,
    PUBLISHED_SOURCE,
    STAND_IN,
    family_of,
    metric_of,
)
from dnabert_rm.evaluate.results import (
    ARMS,
    IN_GUE,
    OTHERS,
    STAND_INS,
    Result,
    Row,
    data_set_rows,
    difference,
    family_rows,
    published_rows,
)
from dnabert_rm.evaluate.suite_runs import arm_name, resolve_settings
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.statistics import mean_and_half_width

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
        write_text(output / name, text)


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


HEADINGS = {
    IN_GUE: "GUE data sets",
    STAND_INS: "Stand-ins: trained on dev, tested on test, for want of train. Compare them with each other only",
    OTHERS: "Data sets that are not GUE's, with default settings",
}
FAMILY_HEADING = "Means of the tasks whose data sets were all run, beside published ones"


@dataclass(frozen=True)
class Remarks:
    """What this call did not run or could not: by data set, and by title of a run, with the reason."""

    not_run: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def table_markdown(results: Sequence[Result], rows: Sequence[Row], families: Sequence[Row], remarks: Remarks) -> str:
    """The tables for people: data sets, families beside published models, stand-ins; then what one has to know."""
    parts = ["# Fine-tuning on GUE"]
    parts += [text for group in HEADINGS for text in _group_table(group, [r for r in rows if r.group == group])]
    if families:
        at = 1 + 2 * any(row.group == IN_GUE for row in rows)
        parts[at:at] = [
            "## Means of the tasks whose data sets were all run, beside published ones",
            _family_table(families),
        ]
    notes = [*_notes(results, rows, families), *_remarks(remarks, rows)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _group_table(group: str, rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield f"## {HEADINGS[group]}"
    arms = [arm for arm in ARMS if any(row.arm == arm for row in rows)]
    pairs = [(arm_name("pretrained", overlapping), arm_name("scratch", overlapping)) for overlapping in (True, False)]
    pairs = [pair for pair in pairs if set(pair) <= set(arms)]
    head = ["data set", *(["task"] if group == IN_GUE else []), "metric", *arms, *(f"{a} − {b}" for a, b in pairs)]
    lines = [_line([*head, "seeds", "train rows", "test rows", "test rows in train"])]
    lines.append(_line(["---"] * (3 if group == IN_GUE else 2) + ["---:"] * (len(arms) + len(pairs) + 4)))
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.arm: row for row in rows if row.name == name}
        first = next(iter(own.values()))
        label = f"{name} ({STAND_IN})" if group == STAND_INS else name
        cells = [label, *([family_of(name) or ""] if group == IN_GUE else []), f"{METRIC_TITLES[first.metric]} × 100"]
        cells += [_score(mean_and_half_width(own[arm].scores.values()) if arm in own else None) for arm in arms]
        cells += [_score(difference(own[a], own[b]) if {a, b} <= set(own) else None, sign="+") for a, b in pairs]
        seeds = dict.fromkeys(str(len(own[arm].scores)) if arm in own else "0" for arm in arms)
        cells += [" / ".join(seeds), f"{first.train_rows:,}", f"{first.test_rows:,}", f"{first.shared_rows:,}"]
        lines.append(_line(cells))
    yield "\n".join(lines)


def _family_table(families: Sequence[Row]) -> str:
    names = [family for family in FAMILIES if any(row.name == family for row in families)]
    lines = [_line(["", *names]), _line(["---", *["---:"] * len(names)])]
    for arm in ARMS:
        own = {row.name: row for row in families if row.arm == arm}
        if own:
            scores = [mean_and_half_width(own[name].scores.values()) if name in own else None for name in names]
            lines.append(_line([arm, *map(_score, scores)]))
    for model in PUBLISHED:
        values = {family: value for other, family, value in published_rows(families) if other == model}
        lines.append(_line([f"{model}, published", *(f"{values[name]:.2f}" for name in names)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _score(value: tuple[float, float | None] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value[0]:{sign}.2f}" + ("" if value[1] is None else f" ± {value[1]:.2f}")


def _notes(results: Sequence[Result], rows: Sequence[Row], families: Sequence[Row]) -> Iterator[str]:
    if results:
        model, sha256 = results[0].scores["settings"]["model"], results[0].record["model_sha256"]
        yield f"Model: {model} (SHA-256 {sha256[:12]}…); scratch is the same architecture with random weights."
    yield (
        "Scores are on test, which was scored once a run; the checkpoint was chosen on dev by MCC. ± is half the 95 %"
        " interval of the mean over seeds (Student's t); a single seed has none."
    )
    if families:
        yield f"Published means: {PUBLISHED_SOURCE}; MCC × 100, macro F1 × 100 for Covid."
    if any(row.shared_rows for row in rows):
        yield "Test rows whose sequence stands in train as well (last column) flatter every arm."
    if cut := [row.name for row in rows if row.cut_rows]:
        yield f"Rows longer than the model's positions, of which it saw the middle: {', '.join(dict.fromkeys(cut))}."
    if any(family_of(row.name) == "EMP" for row in rows):
        yield "EMP's sequences are stretches of the yeast genome: pretraining on yeast has seen them, not their labels."
    for text, names in _changed_settings(results).items():
        yield f"Settings other than the table's for {', '.join(names)}: {text}."


def _changed_settings(results: Sequence[Result]) -> dict[str, list[str]]:
    """Data sets by what was set otherwise than GUE's table says."""
    changed: dict[str, list[str]] = {}
    for name, settings in {result.name: result.record["settings"] for result in results}.items():
        table = resolve_settings(name, {})
        text = ", ".join(f"{key} {settings[key]}" for key in table if settings.get(key) != table[key])
        if text:
            changed.setdefault(text, []).append(name)
    return changed


def _remarks(remarks: Remarks, rows: Sequence[Row]) -> Iterator[str]:
    for name, why in remarks.not_run.items():
        yield f"Not run: {name}: {why}."
    for title, why in remarks.failed.items():
        yield f"Failed: {title}: {why}."
    there = {row.name for row in rows} | set(remarks.not_run)
    if absent := [name for name in GUE if name not in there]:
        yield f"Without a result, of GUE's {len(GUE)}: {', '.join(absent)}."
