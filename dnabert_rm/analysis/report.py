"""HTML report of one or more runs: results, figures, speed, settings. Torch-free. Template: report.html.jinja."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dnabert_rm import __version__
from dnabert_rm.analysis import gue_table, report_rows
from dnabert_rm.analysis.curves import curves_figure, make_curves
from dnabert_rm.analysis.figures import data_uri
from dnabert_rm.analysis.gue_table import GueTable
from dnabert_rm.analysis.run_records import Run, short_names
from dnabert_rm.utils.files import write_text

ANALYSIS_NAME = "analysis"
"""Folder in a run for the figures of `analyze embeddings` and `analyze attention`. The report includes them."""
PICTURES = {
    "embeddings": {
        "embeddings.png": "t-SNE plane of the k-mer embeddings, coloured by the two central bases",
        "embeddings_steps.png": "silhouette scores of the k-mer embeddings against the steps of the checkpoints",
    },
    "attention": {
        "attention_layers.png": "entropy of the attention and attention on the most attended tokens, by layer",
        "attention_maps.png": "mean attention map of every layer",
        "attention_cls.png": "attention of [CLS], by layer and head",
    },
}
"""Descriptions of the figures of a run, keyed by `analyze` command and file name."""
_TEMPLATE = "report.html.jinja"


class Picture(NamedTuple):
    """An image of the report, with its alternative text for screen readers."""

    uri: str
    description: str


@dataclass(frozen=True)
class GueSection:
    """Tables and remarks for the report section on fine-tuning results."""

    suites: str
    """Names of the benchmark suites, e.g. "GUE" or "GUE and Genomic Benchmarks"."""
    arms: list[str]
    families: list[list[str | None]]
    published: list[list[str | None]]
    data_sets: list[list[str | None]]
    stand_ins: list[list[str | None]]
    others: list[list[str | None]]
    remarks: list[str]

    @property
    def is_empty(self) -> bool:
        """Whether all tables are empty."""
        return not (self.families or self.published or self.data_sets or self.stand_ins or self.others)


def write_report(path: Path, runs: Sequence[Run], gue: Sequence[Path] = (), axis: str = "steps") -> list[str]:
    """Write the HTML report. Return one sentence for each missing part of the report.

    `gue` contains output folders of `dnabert-rm evaluate suite`. `axis` is the x axis of the curves, "steps" or
    "tokens". Raise `ConfigError` if matplotlib is not installed, and `DataError` if a folder in `gue` has no valid
    table.
    """
    names = short_names(gue) if gue else []
    tables = [gue_table.read_gue(folder, name) for folder, name in zip(gue, names, strict=True)]
    content = report_content(runs, tables, axis)
    page = _render(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    missing: list[str] = content["missing"]
    return missing


def report_content(runs: Sequence[Run], tables: Sequence[GueTable] = (), axis: str = "steps") -> dict[str, Any]:
    """Return the variables of the HTML template, keyed by name."""
    settings, num_differing = report_rows.setting_rows([run.config for run in runs])
    changed, defaults = report_rows.split_defaults(settings)
    content = {
        "run_names": [run.name for run in runs],
        "folders": [run.folder for run in runs],
        "verdicts": [(run.name, report_rows.verdict_text(run), report_rows.last_bits_table(run)) for run in runs],
        "summary_rows": report_rows.summary_rows(runs),
        "last_rows": report_rows.LAST_ROWS,
        "held_out_rows": report_rows.held_out_rows(runs),
        "phases": [(run.name, report_rows.phase_rows(run)) for run in runs if run.phases],
        "curves": _curves_picture(runs, axis),
        "embeddings": _pictures_by_run(runs, "embeddings"),
        "attention": _pictures_by_run(runs, "attention"),
        "gue": _gue_section(tables) if tables else None,
        "speed_rows": report_rows.speed_rows(runs),
        "num_logged": [(run.name, len(run.rows)) for run in runs],
        "checkpoints": [(run.name, rows) for run in runs if (rows := report_rows.checkpoint_rows(run.folder))],
        "configuration": (changed, num_differing),
        "defaults": defaults,
        "environment": report_rows.setting_rows([run.environment for run in runs]),
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return content | {"missing": _missing(content, runs)}


def _render(content: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(_TEMPLATE).render(content)


def _curves_picture(runs: Sequence[Run], axis: str) -> Picture:
    description = (
        "Held-out bits per base, training loss, held-out loss at fixed spans, masked accuracy and learning rate "
        f"against {axis}"
    )
    return Picture(data_uri(curves_figure(runs, make_curves(runs), axis)), description)


def _pictures_by_run(runs: Sequence[Run], kind: str) -> list[tuple[str, list[Picture]]]:
    """Return pairs (run name, figures) for the runs with figures of `kind`, "embeddings" or "attention"."""
    by_run = []
    for run in runs:
        paths = {run.folder / ANALYSIS_NAME / name: description for name, description in PICTURES[kind].items()}
        pictures = [
            Picture(data_uri(path), f"{run.name}: {description}")
            for path, description in paths.items()
            if path.is_file()
        ]
        if pictures:
            by_run.append((run.name, pictures))
    return by_run


def _gue_section(tables: Sequence[GueTable]) -> GueSection:
    return GueSection(
        suites=" and ".join(dict.fromkeys(table.suite for table in tables)),
        arms=gue_table.column_titles(tables),
        families=gue_table.pivot(tables, gue_table.FAMILY, gue_table.IN_SUITE),
        published=gue_table.published(tables),
        data_sets=gue_table.pivot(tables, gue_table.DATA_SET, gue_table.IN_SUITE),
        stand_ins=gue_table.pivot(tables, gue_table.DATA_SET, gue_table.STAND_IN),
        others=gue_table.pivot(tables, gue_table.DATA_SET, gue_table.OTHER),
        remarks=[f"{table.name}: {text}" for table in tables for text in table.remarks],
    )


def _missing(content: dict[str, Any], runs: Sequence[Run]) -> list[str]:
    """Return one sentence for each part of the report that has no data, in report order."""
    sentences = []
    if not content["held_out_rows"]:
        sentences.append("No run has held-out losses. The data had no validation split, or --validation.every was 0.")
    else:
        sentences += [f"{run.name} has no held-out losses." for run in runs if not run.held_out_names]
    for kind in PICTURES:
        with_pictures = {name for name, _ in content[kind]}
        for run in runs:
            if run.name not in with_pictures:
                command = f"dnabert-rm analyze {kind} {run.folder}" + (" --data DIR" if kind == "attention" else "")
                sentences.append(f"{run.name} has no {kind} figures; run `{command}` to draw them.")
    if content["gue"] is None:
        sentences.append("No GUE table; pass an output folder of `dnabert-rm evaluate suite` with `--gue DIR`.")
    elif content["gue"].is_empty:
        sentences.append("The folders passed with `--gue` have no finished run yet.")
    with_checkpoints = {name for name, _ in content["checkpoints"]}
    sentences += [f"{run.name} has no checkpoints in its folder." for run in runs if run.name not in with_checkpoints]
    sentences += [f"{run.name} has no config.toml, so its phases are not shown." for run in runs if not run.config]
    sentences += [f"{run.name} has no environment.json." for run in runs if not run.environment]
    return sentences
