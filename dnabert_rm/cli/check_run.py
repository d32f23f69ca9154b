"""Command `dnabert-rm check-run RUN`: print a verdict on a run: how good it is, and what to try."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnabert_rm.config.command_line import Command
from dnabert_rm.config.schema import Settings, setting

if TYPE_CHECKING:
    from dnabert_rm.analysis.run_comparison import Comparison

LAST_LINES = 5
"""Largest number of validations to list."""


@dataclass(frozen=True)
class CheckRunSettings(Settings):
    """Flags of `check-run`."""

    run: Path = setting(positional=True, metavar="RUN")
    """A run folder; the run may still be training."""
    reference: tuple[str, ...] = setting((), metavar="NAME|RUN")
    """Compare with reference runs that differ only in their seeds: the name of a shipped reference (tiny_yeast), or run
    folders. The exit code is 1 if the run is worse than another seed explains."""
    json: bool = False
    """Print one JSON object."""


def run(settings: CheckRunSettings) -> int:
    """Print the verdict on the run, its last validations, a table of the last one, and the comparison. Return 1 if the
    run is worse than the reference, otherwise 0."""
    from dnabert_rm.analysis.run_comparison import compare_run, read_reference
    from dnabert_rm.analysis.run_records import read_run
    from dnabert_rm.train.run_verdict import judge_run
    from dnabert_rm.train.validation_record import validation_line, validation_of

    found = read_run(settings.run)
    verdict = judge_run(found.rows, found.first_validation)
    validated = [row for row in found.rows if validation_of(row)]
    comparison = compare_run(found, *read_reference(settings.reference)) if settings.reference else None
    code = int(comparison is not None and comparison.is_worse)
    if settings.json:
        last = validation_of(validated[-1]) if validated else None
        record = {"run": str(settings.run), **dataclasses.asdict(verdict), "validation": last}
        if comparison is not None:
            record["comparison"] = {**dataclasses.asdict(comparison), "text": comparison.text, "is_worse": bool(code)}
        print(json.dumps(record))
        return code
    print(verdict.text)
    if validated:
        print()
        for row in validated[-LAST_LINES:]:
            print(validation_line(row["step"] + 1, validation_of(row)))
        print("\n" + table_text(*_table(validation_of(validated[-1]))))
    if comparison is not None:
        print("\n" + _comparison_text(comparison))
    return code


def _comparison_text(comparison: Comparison) -> str:
    """Return the comparison with the reference runs: the deciding measure by step, all last measures, the result."""
    from dnabert_rm.analysis.run_comparison import range_text

    seeds = ", ".join(map(str, comparison.seeds))
    changed = "; ".join(comparison.changed) or "none"
    tables = [
        (["steps", comparison.compared], [(f"{one.steps:,}", one) for one in comparison.curve]),
        ([f"after {comparison.last[-1].steps:,} steps", "run"], [(one.name, one) for one in comparison.last]),
    ]
    parts = [
        table_text(
            [*titles, "reference (95 % of seeds)"], [[name, f"{one.value:.4f}", range_text(one)] for name, one in rows]
        )
        for titles, rows in tables
    ]
    head = f"reference: {comparison.reference} (seeds {seeds}); settings that differ: {changed}"
    return "\n\n".join([head, *parts, comparison.text])


def _table(validation: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str | None]]]:
    """Return titles and rows: bits per base, or else the losses at fixed spans."""
    from dnabert_rm.train.validation_record import bits_table, curve_text, loss_curves

    titles, rows = bits_table(validation)
    if rows:
        return titles, rows
    columns = ("loss", "masked_accuracy", "base_accuracy")
    rows = [
        [curve_text(name), *(None if values.get(key) is None else f"{values[key]:.3f}" for key in columns)]
        for name, values in loss_curves(validation).items()
    ]
    return ["held-out", *(name.replace("_", " ") for name in columns)], rows


def table_text(titles: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Return a table as lines of text with aligned columns. A missing value is a dash."""
    lines = [titles, *([cell or "–" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


COMMAND = Command(
    name="check-run",
    help="print a verdict on a run: its bits per base against Markov chains, and what to try",
    example="dnabert-rm check-run runs/first\ndnabert-rm check-run runs/first --reference tiny_yeast",
    settings=CheckRunSettings,
    run=run,
)
