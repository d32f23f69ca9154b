"""The report of one or more runs: what was set, how it went, how fast, and what there is to compare. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from dnabert_rm import __version__
from dnabert_rm.analysis import gue_table, run_facts
from dnabert_rm.analysis.curves import curves_figure, make_curves
from dnabert_rm.analysis.figures import data_uri
from dnabert_rm.analysis.gue_table import GueTable
from dnabert_rm.analysis.page import (
    Markup,
    code,
    heading,
    listing,
    page,
    paragraph,
    picture,
    table,
    with_code,
)
from dnabert_rm.analysis.run_records import Run

ANALYSIS_NAME = "analysis"
"""Folder in a run where `analyze embeddings` and `analyze attention` put their pictures, and the report finds them."""
PICTURES = {
    "Embeddings": {
        "embeddings.png": "t-SNE plane of the k-mer embeddings, coloured by the two central bases",
        "embeddings_steps.png": "silhouette scores of the k-mer embeddings against the steps of the checkpoints",
    },
    "Attention": {
        "attention_layers.png": "entropy of the attention and the mass on the most attended tokens, by layer",
        "attention_maps.png": "mean attention map of every layer",
        "attention_cls.png": "what [CLS] attends to, by layer and head",
    },
}
"""What the report shows of such a folder, by section."""
Section = tuple[str, Sequence[Markup]]


class Report:
    """The page's parts, and the sentences on what is missing that its making brings up."""

    def __init__(self, runs: Sequence[Run], gue: Sequence[GueTable] = (), axis: str = "steps") -> None:
        self.runs, self.gue, self.axis = runs, gue, axis
        self.names: list[object] = [run.name for run in runs]
        self.missing: list[str] = []

    def html(self) -> str:
        """The page. `ConfigError` without matplotlib."""
        title = "Pretraining report: " + ", ".join(run.name for run in self.runs)
        sections = [
            ("Summary", self._summary()),
            ("Curves", self._curves()),
            *self._pictures(),
            ("Fine-tuning on GUE", self._gue()),
            ("Speed", self._speed()),
            ("Checkpoints", self._checkpoints()),
            ("Configuration", self._configuration()),
            ("Environment", self._environment()),
        ]
        folders = ", ".join(f"`{run.folder}`" for run in self.runs)
        opening = [paragraph(with_code(f"From {folders}"), "note")]
        if self.missing:
            text = "<strong>What is missing</strong>" + listing([with_code(sentence) for sentence in self.missing])
            opening.append(Markup(f'<div class="missing">{text}</div>'))
        written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        shown = [(name, content) for name, content in sections if content]
        return page(title, opening, shown, f"Written by dnabert_rm {__version__}, {written}.")

    def _table(self, rows: Sequence[Sequence[object]], align: str = "ln") -> Markup:
        """A table with a column a run."""
        return table(["", *self.names], rows, align)

    def _summary(self) -> list[Markup]:
        parts = [self._table(run_facts.summary_rows(self.runs), "l")]
        parts.append(paragraph(f"“At the end” is the mean of the last {run_facts.LAST_ROWS} logged steps, or of all "
                               "where there are fewer.", "note"))  # fmt: skip
        rows = run_facts.held_out_rows(self.runs)
        if rows:
            parts += [heading("Held-out loss, last validation"), self._table(rows)]
        else:
            self.missing.append(
                "No run has held-out losses: its data had no validation split, or --validation.every was 0."
            )
        for run in self.runs:
            if rows and not run.held_out_names:
                self.missing.append(f"{run.name} has no held-out losses.")
            if run.phases:
                head = [
                    "phase",
                    "largest span",
                    "steps",
                    "loss at its beginning",
                    "loss at its end",
                    "logged steps of each mean",
                ]
                parts += [heading(f"Phases of {run.name}"), table(head, run_facts.phase_rows(run), "n")]
        return parts

    def _curves(self) -> list[Markup]:
        curves = make_curves(self.runs)
        uri = data_uri(curves_figure(self.runs, curves, self.axis))
        described = (
            "Training loss, held-out loss at fixed spans, masked accuracy and learning rate against " + self.axis
        )
        told = ""
        if any(run.phases for run in self.runs):
            told = "The training loss jumps where a phase widens the masks: a harder question, not a worse model. "
        told += "Only the held-out losses, whose masks never change, compare phases and runs."
        return [picture(uri, described, told)]

    def _pictures(self) -> list[Section]:
        """What `analyze embeddings` and `analyze attention` left in the run folders."""
        sections: list[Section] = []
        for title, names in PICTURES.items():
            content: list[Markup] = []
            for run in self.runs:
                own = [run.folder / ANALYSIS_NAME / name for name in names]
                if there := [path for path in own if path.is_file()]:
                    content.append(heading(run.name))
                    content += [picture(data_uri(path), f"{run.name}: {names[path.name]}") for path in there]
                else:
                    command = f"dnabert-rm analyze {title.lower()} {run.folder}"
                    command += " --data DIR" if title == "Attention" else ""
                    self.missing.append(f"No pictures of the {title.lower()} of {run.name}; `{command}` makes them.")
            sections.append((title, content))
        return sections

    def _gue(self) -> list[Markup]:
        if not self.gue:
            self.missing.append("No GUE table; `--gue DIR` names a folder that `dnabert-rm gue` has written.")
            return []
        titles = gue_table.column_titles(self.gue)
        head = ["", "metric", *titles, "seeds", "train rows", "test rows"]
        parts = []
        for title, kind, group in (
            ("Means of complete tasks", gue_table.FAMILY, gue_table.IN_GUE),
            ("Data sets", gue_table.DATA_SET, gue_table.IN_GUE),
            ("Stand-ins: trained on dev for want of train; not GUE numbers", gue_table.DATA_SET, gue_table.STAND_IN),
            ("Data sets that are not GUE's", gue_table.DATA_SET, gue_table.OTHER),
        ):
            if rows := gue_table.pivot(self.gue, kind, group):
                parts += [heading(title), table(head, rows, "lln")]
            if kind == gue_table.FAMILY and (others := gue_table.published(self.gue)):
                parts += [heading("Published means of these tasks"),
                          table(["", "metric", "model", "mean", "source"], others, "lllnl")]  # fmt: skip
        if not parts:
            self.missing.append("The GUE folders have no finished run yet.")
        note = "Scores on test, mean over seeds ± half its 95 % interval; a single seed has none."
        remarks = [f"{table.name}: {text}" for table in self.gue for text in table.remarks]
        return [*parts, paragraph(note, "note"), *([listing(remarks)] if remarks else [])]

    def _speed(self) -> list[Markup]:
        counts = ", ".join(f"{len(run.rows):,} of {run.name}" for run in self.runs)
        note = f"Medians over the logged steps that have the number ({counts}). A dash: not recorded, "
        note += "as the share of the peak on hardware whose peak is not known."
        return [self._table(run_facts.speed_rows(self.runs)), paragraph(note, "note")]

    def _checkpoints(self) -> list[Markup]:
        parts = []
        for run in self.runs:
            if rows := run_facts.checkpoint_rows(run.folder):
                parts += [heading(run.name), table(["step", "size", "written"], rows, "nnl")]
            else:
                self.missing.append(f"{run.name} has no checkpoints in its folder.")
        return parts

    def _configuration(self) -> list[Markup]:
        self.missing += [
            f"{run.name} has no config.toml, so its phases are not shown." for run in self.runs if not run.config
        ]
        return self._settings([run.config for run in self.runs], "Every setting after presets, files and flags.")

    def _environment(self) -> list[Markup]:
        self.missing += [f"{run.name} has no environment.json." for run in self.runs if not run.environment]
        return self._settings(
            [run.environment for run in self.runs], "As rank 0 found it when the run was last started."
        )

    def _settings(self, contents: Sequence[dict], note: str) -> list[Markup]:
        rows, differing = run_facts.setting_rows(contents)
        if not rows:
            return []
        if differing:
            note += " ≠ marks what differs between the runs; it comes first."
        order = [*differing, *(number for number in range(len(rows)) if number not in differing)]
        cells = [[code(rows[n][0]), *(None if value is None else code(value) for value in rows[n][1:])] for n in order]
        return [paragraph(note, "note"), table(["", *self.names], cells, "l", range(len(differing)))]


def write_report(path: Path, runs: Sequence[Run], gue: Sequence[Path] = (), axis: str = "steps") -> list[str]:
    """Write the page; returns the sentences on what is missing."""
    from dnabert_rm.analysis.run_records import short_names
    from dnabert_rm.utils.files import write_text

    tables = (
        [gue_table.read_gue(folder, name) for folder, name in zip(gue, short_names(gue), strict=True)] if gue else []
    )
    report = Report(runs, tables, axis)
    text = report.html()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return report.missing
