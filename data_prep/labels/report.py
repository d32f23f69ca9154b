"""The report of `labels`: counts by split and label, dropped windows and near-duplicates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.labels.options import LabelsSettings
from data_prep.labels.sources import Source
from data_prep.labels.splits import SPLITS
from data_prep.labels.windows import Dropped, Rows, composition
from dnabert_rm.utils.files import sha256_of_file

NO_NEGATIVE = "no negative found: no window of the genome has a similar share of G+C and repeats"
SHOWN_LABELS = 8
FEW_MISSING = 0.02
"""Share of missing negatives in all rows above which the report warns."""


def make_report(
    settings: LabelsSettings,
    sources: list[Source],
    kind: str,
    rows: Rows,
    dropped: Dropped,
    near: dict[str, int],
) -> dict[str, Any]:
    """Return the content of labels.json: inputs, counts by split and label, dropped windows and near-duplicates.

    `near`: Number of near-duplicates that are kept in dev and test.
    """
    files = [settings.fasta, *(source.path for source in sources), *([settings.overlap] if settings.overlap else [])]
    windows, split, shares = rows.windows, rows.split, composition(rows.letters)
    tables: dict[str, Any] = {}
    for number, name in enumerate(SPLITS):
        labels: dict[str, Any] = {}
        of_split = split == number
        if settings.label == "score":
            labels["(number)"] = of_split
        else:
            labels = {str(label): of_split & (windows.label == label) for label in np.unique(windows.label[of_split])}
        tables[name] = {
            label: {
                "rows": int(chosen.sum()),
                "gc": round(float(shares.gc[chosen].mean()), 4) if chosen.any() else None,
                "soft_masked": round(float(shares.lower[chosen].mean()), 4) if chosen.any() else None,
            }
            for label, chosen in labels.items()
        }
    return {
        "files": {path: sha256_of_file(path) if os.path.isfile(path) else None for path in files},
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(settings).items()
            if not isinstance(value, Path)
        },
        "negatives": kind,
        "intervals": sum(len(source.intervals) for source in sources),
        "rows": {name: int((split == number).sum()) for number, name in enumerate(SPLITS)},
        "labels": tables,
        "dropped": {reason: number for reason, number in sorted(dropped.items()) if number},
        "near_duplicates": near,
    }


def as_text(report: dict[str, Any], folder: Path) -> str:
    """Return the report as a few lines of text."""
    lines = [f"{folder}: {report['intervals']:,} intervals"]
    for name, labels in report["labels"].items():
        known = [(label, value) for label, value in labels.items() if value["rows"]]
        shown = [f"{value['rows']:,} x {label} ({value['gc']:.1%} G+C)" for label, value in known[:SHOWN_LABELS]]
        shown += [f"{len(known) - SHOWN_LABELS} more labels"] * (len(known) > SHOWN_LABELS)
        lines.append(f"  {name}.csv  {report['rows'][name]:,} rows: {', '.join(shown) or 'none'}")
    lines += [f"  dropped  {number:,}: {reason}" for reason, number in report["dropped"].items()]
    if report["dropped"].get(NO_NEGATIVE, 0) > FEW_MISSING * sum(report["rows"].values()):
        lines.append(
            "  many negatives are missing, so the labels also differ in composition; pass a smaller --distance, "
            "--away-from windows, or a larger --gc-tolerance"
        )
    for name, number in report["near_duplicates"].items():
        if number:
            lines.append(f"  {number:,} rows of {name}.csv are near-duplicates of rows in earlier tables")
    return "\n".join(lines)
