"""Command `dnabert-rm analyze KIND`: plot figures, or write a report about runs. Each kind is a subcommand."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dnabert_rm.config.command_line import Command, CommandGroup
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import write_text


@dataclass(frozen=True)
class CurvesSettings(Settings):
    """Flags of `analyze curves`."""

    runs: tuple[str, ...] = setting(positional=True, metavar="RUN")
    """Run folders."""
    output: Path = setting(metavar="FILE")
    """Figure file (.png, .svg or .pdf). Its data are written beside it as .csv."""
    names: tuple[str, ...] = setting((), separator=",", metavar="A,B")
    """Names of the runs; by default their folder names."""
    x: Literal["steps", "tokens"] = "steps"
    """Horizontal axis."""
    smooth: int = setting(0, metavar="N", minimum=0)
    """Width of the running mean in logged steps, an odd number; 1: no smoothing, 0: a fiftieth of the run."""

    def problems(self) -> Iterator[str]:
        """Yield an error message if the width of the running mean is even."""
        if self.smooth and self.smooth % 2 == 0:
            yield f"--smooth {self.smooth}: must be an odd number, so that the mean is centred on a step"


def run_curves(settings: CurvesSettings) -> None:
    """Plot the curves of several runs in one figure."""
    from dnabert_rm.analysis.curves import COLUMNS, curves_csv, curves_figure, make_curves
    from dnabert_rm.analysis.figures import check_picture_name, data_table, save_figure
    from dnabert_rm.analysis.run_records import read_runs

    check_picture_name(settings.output)
    table = data_table(settings.output, COLUMNS)
    runs = read_runs(settings.runs, settings.names)
    curves = make_curves(runs, settings.smooth)
    save_figure(curves_figure(runs, curves, settings.x, settings.smooth), settings.output)
    write_text(table, curves_csv(curves))
    print(f"{settings.output}\n{table}")


@dataclass(frozen=True)
class EmbeddingsSettings(Settings):
    """Flags of `analyze embeddings`."""

    model: Path = setting(positional=True, metavar="MODEL")
    """An exported or fine-tuned model, a run folder (its last checkpoint), or one of its step_… folders."""
    output: Path | None = setting(None, metavar="DIR")
    """Folder for embeddings.png, .csv, .json; by default RUN/analysis, where the report finds them. Required for an
    exported model."""
    steps: str | None = setting(None, metavar="N,N")
    """Steps of the checkpoints to score; by default all."""
    points: int = setting(4096, metavar="N", minimum=32)
    """Number of k-mers to draw; a random sample if there are more."""
    perplexity: float = setting(30.0, metavar="P", above=0)
    """Perplexity of t-SNE."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Metric of t-SNE."""
    seed: int = 0
    """Seed of t-SNE and of the random sample."""


def run_embeddings(settings: EmbeddingsSettings) -> None:
    """Score and plot k-mer embeddings, and print the paths of the files written."""
    suppress_library_output()
    from dnabert_rm.analysis.model_pictures import draw_embeddings

    with contextlib.redirect_stdout(sys.stderr):
        written = draw_embeddings(
            settings.model,
            output=settings.output,
            steps=settings.steps,
            metric=settings.metric,
            perplexity=settings.perplexity,
            max_kmers=settings.points,
            seed=settings.seed,
        )
    print("\n".join(map(str, written)))


@dataclass(frozen=True)
class SequencesSettings(Settings):
    """Flags of `analyze sequences`."""

    model: Path = setting(positional=True, metavar="HFDIR")
    """An exported or fine-tuned model."""
    table: Path = setting(metavar="CSV")
    """CSV or TSV table with the columns sequence and --label-column."""
    output: Path = setting(metavar="FILE")
    """Figure file (.png, .svg or .pdf). Its data are written beside it as .csv."""
    label_column: str = setting("label", metavar="NAME")
    """Column with the labels."""
    layer: int | None = setting(None, metavar="N")
    """Hidden state to use, as in `embed`; by default the encoder's output."""
    points: int = setting(2000, metavar="N", minimum=12)
    """Number of sequences to draw; a random sample if there are more."""
    perplexity: float = setting(30.0, metavar="P", above=0)
    """Perplexity of t-SNE."""
    seed: int = 0
    """Seed of t-SNE and of the random sample."""


def run_sequences(settings: SequencesSettings) -> None:
    """Map labelled sequences by their embeddings, and print what is seen and the paths of the files written."""
    suppress_library_output()
    from dnabert_rm.analysis.figures import check_picture_name, data_table, new_figure, save_figure
    from dnabert_rm.analysis.sequence_map import COLUMNS, map_sequences, sequences_csv, sequences_figure

    check_picture_name(settings.output)
    table = data_table(settings.output, COLUMNS)
    new_figure(1, 1)  # before the forward passes, in case matplotlib is missing
    found = map_sequences(
        settings.model,
        settings.table,
        settings.label_column,
        layer=settings.layer,
        max_rows=settings.points,
        perplexity=settings.perplexity,
        seed=settings.seed,
    )
    save_figure(sequences_figure(found, f"Embeddings of {settings.table} by {settings.model}"), settings.output)
    write_text(table, sequences_csv(found))
    print(f"{found.sentence}\n{settings.output}\n{table}")


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """Flags of `analyze attention`."""

    model: Path = setting(positional=True, metavar="MODEL")
    """An exported or fine-tuned model, a run folder (its last checkpoint), or one of its step_… folders."""
    output: Path | None = setting(None, metavar="DIR")
    """Folder for attention.json and three figures; by default RUN/analysis, where the report finds them. Required for
    an exported model."""
    data: str | None = setting(None, metavar="DIR")
    """Prepared folder to take windows from."""
    fasta: str | None = setting(None, metavar="FILE")
    """FASTA to cut windows from, plain or gzip."""
    split: str | None = None
    """Split of --data; by default val, or train if there is no val."""
    window: int | None = setting(None, metavar="N", minimum=4)
    """Tokens per window, [CLS] and [SEP] included; by default as in pretraining, but at most 512."""
    windows: int = setting(16, metavar="N", minimum=1)
    """Number of windows."""
    step: int | None = None
    """Checkpoint of this step of the run; by default the last."""
    non_overlapping: bool = False
    """Use tokens with stride k; by default the stride of pretraining."""
    seed: int = 0
    """Seed for choosing windows from --data."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if (self.data is None) == (self.fasta is None):
            yield "--data, --fasta: pass exactly one of the two"
        if self.fasta and self.split:
            yield "--split: applies to --data only; omit it with --fasta"


def run_attention(settings: AttentionSettings) -> None:
    """Measure and plot attention, and print the paths of the files written."""
    suppress_library_output()
    from dnabert_rm.analysis.model_pictures import draw_attention

    with contextlib.redirect_stdout(sys.stderr):
        written = draw_attention(
            settings.model,
            output=settings.output,
            data=settings.data,
            fasta=settings.fasta,
            split=settings.split,
            step=settings.step,
            window=settings.window,
            num_windows=settings.windows,
            non_overlapping=settings.non_overlapping,
            seed=settings.seed,
        )
    print("\n".join(map(str, written)))


@dataclass(frozen=True)
class ImagesSettings(Settings):
    """Flags of `analyze images`."""

    model: Path = setting(positional=True, metavar="RUN")
    """A run folder; the run may still be training."""
    data: str | None = setting(None, metavar="DIR")
    """Prepared folder for attention; by default only embeddings are drawn."""
    follow: bool = False
    """Wait for new checkpoints until the one of the last step."""


def run_images(settings: ImagesSettings) -> None:
    """Add figures of each checkpoint to a run's TensorBoard log."""
    suppress_library_output()
    from dnabert_rm.analysis.tensorboard_images import write_images

    with contextlib.redirect_stdout(sys.stderr):
        folder = write_images(settings.model, data=settings.data, follow=settings.follow)
    print(folder)


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Flags of `analyze compare`."""

    runs: tuple[Path, ...] = setting(positional=True, metavar="RUN")
    """Run folders that contain results of `analyze embeddings` and `analyze attention`, or folders of such results."""
    output: Path = setting(metavar="FILE")
    """Figure file (.png, .svg or .pdf). Its data are written beside it as .csv."""
    names: tuple[str, ...] = setting((), separator=",", metavar="A,B")
    """Names of the runs; by default their folder names."""


def run_compare(settings: CompareSettings) -> None:
    """Plot silhouette scores and attention measures of several runs side by side."""
    from dnabert_rm.analysis.compare import COLUMNS, compare_csv, compare_figure, read_measured
    from dnabert_rm.analysis.figures import check_picture_name, data_table, save_figure
    from dnabert_rm.analysis.report import ANALYSIS_NAME
    from dnabert_rm.analysis.run_records import own_names

    check_picture_name(settings.output)
    table = data_table(settings.output, COLUMNS)
    names = own_names(settings.runs, settings.names)
    folders = [run / ANALYSIS_NAME if (run / ANALYSIS_NAME).is_dir() else run for run in settings.runs]
    runs = [read_measured(folder, name) for folder, name in zip(folders, names, strict=True)]
    save_figure(compare_figure(runs), settings.output)
    write_text(table, compare_csv(runs))
    print(f"{settings.output}\n{table}")


@dataclass(frozen=True)
class MaskingSettings(Settings):
    """Flags of `analyze masking`."""

    output: Path = setting(metavar="FILE")
    """Figure file (.png, .svg or .pdf)."""
    view: Literal["phases", "hidden"] = "phases"
    """"phases": masks of some windows in each phase; "hidden": the bases hidden by one masked span of each length."""
    k: int = 6
    """Bases per k-mer."""
    steps: int = setting(480_000, minimum=1)
    """Steps of the run."""
    draw: Literal["uniform", "max"] = "uniform"
    """Span of a window: uniform over the spans of the phase, or always the largest."""
    replacement: Literal["token", "span"] = "token"
    """Unit of the 80/10/10 replacement: each token, or each span (overlapping spans are merged)."""


def run_masking(settings: MaskingSettings) -> None:
    """Plot the masks of RandomMask."""
    from dnabert_rm.analysis.figures import check_picture_name, save_figure
    from dnabert_rm.analysis.mask_figures import hidden_figure, masks_figure
    from dnabert_rm.genome.kmer import check_k
    from dnabert_rm.masking.schedule import make_schedule

    check_picture_name(settings.output)
    k = check_k(settings.k)
    schedule = make_schedule("randommask", k=k, total_steps=settings.steps, draw=settings.draw)
    if settings.view == "hidden":
        figure = hidden_figure(schedule.spans[-1][::2], k=k)
    else:
        figure = masks_figure(schedule, k=k, replacement=settings.replacement)
    save_figure(figure, settings.output)
    print(settings.output)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """Flags of `analyze report`."""

    runs: tuple[str, ...] = setting(positional=True, metavar="RUN")
    """Run folders."""
    output: Path = setting(metavar="FILE")
    """The HTML page to write, such as report.html."""
    gue: tuple[Path, ...] = setting((), metavar="DIR")
    """Output folders of `dnabert-rm evaluate suite`."""
    names: tuple[str, ...] = setting((), separator=",", metavar="A,B")
    """Names of the runs; by default their folder names."""
    x: Literal["steps", "tokens"] = "steps"
    """Horizontal axis of the curves."""

    def problems(self) -> Iterator[str]:
        """Yield an error message if the output is a folder, or if its name does not end in .html or .htm."""
        if self.output.is_dir():
            yield f"--output {self.output}: is a folder; pass the path of a file, such as report.html"
        elif self.output.suffix.lower() not in (".html", ".htm"):  # so that it is none of a run's own files
            yield f"--output {self.output}: the file name must end in .html"


def run_report(settings: ReportSettings) -> None:
    """Write the report of one or more runs."""
    from dnabert_rm.analysis.report import write_report
    from dnabert_rm.analysis.run_records import read_runs

    runs = read_runs(settings.runs, settings.names)
    for sentence in write_report(settings.output, runs, settings.gue, settings.x):
        print(f"note: {sentence}", file=sys.stderr)
    print(settings.output)


def _kind(name: str, text: str, settings: type, run: Any, example: str) -> Command:
    return Command(name, text, f"dnabert-rm analyze {name} {example}", settings, run)


KINDS = {
    command.name: command
    for command in (
        _kind(
            "curves",
            "plot several runs in one figure: losses with their phases, accuracy, learning rate",
            CurvesSettings,
            run_curves,
            "runs/randommask runs/fixed --names RandomMask,fixed --output curves.png",
        ),
        _kind(
            "embeddings",
            "plot the k-mer embeddings by t-SNE, with the silhouette of groups that share the two central bases",
            EmbeddingsSettings,
            run_embeddings,
            "runs/first",
        ),
        _kind(
            "sequences",
            "map labelled sequences by their embeddings (t-SNE)",
            SequencesSettings,
            run_sequences,
            "models/first --table promoters/test.csv --output map.png",
        ),
        _kind(
            "attention",
            "plot every layer's attention: entropy, share of the 5 highest weights, and maps",
            AttentionSettings,
            run_attention,
            "runs/first --data prepared",
        ),
        _kind(
            "images",
            "add figures of each checkpoint's embeddings and attention to the run's TensorBoard",
            ImagesSettings,
            run_images,
            "runs/first --data prepared --follow",
        ),
        _kind(
            "compare",
            "plot runs side by side: silhouette by step, attention by layer",
            CompareSettings,
            run_compare,
            "runs/randommask runs/fixed --output compare.png",
        ),
        _kind("masking", "plot RandomMask's masks in each phase", MaskingSettings, run_masking, "--output masks.png"),
        _kind(
            "report",
            "write one HTML page about runs: results, figures, settings, speed, GUE",
            ReportSettings,
            run_report,
            "runs/randommask runs/fixed --gue results --output report.html",
        ),
    )
}


class AnalyzeCommand(CommandGroup):
    """Command `analyze`. Its subcommands print a one-line error if a file can't be read or written."""

    def main(self, prog: str, words: Sequence[str]) -> int | None:
        """Run the subcommand that the first word names."""
        try:
            return super().main(prog, words)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}; check the path") from None


COMMAND = AnalyzeCommand(
    name="analyze",
    help="plot curves, embeddings, attention or masks, or write a report of runs",
    example=(
        "dnabert-rm analyze curves runs/randommask runs/fixed --output curves.png\n"
        "dnabert-rm analyze report runs/randommask runs/fixed --gue results --output report.html"
    ),
    kinds=KINDS,
    title="Plot figures of runs and models, or write a report.",
)
