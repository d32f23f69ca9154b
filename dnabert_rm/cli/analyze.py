"""`dnabert-rm analyze`: pictures and a report of what runs did; one sub-command a kind of picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import ConfigError, DataError

HELP = "curves, embeddings, attention, masks as pictures; a report of runs as one page"
EXAMPLE = (
    "dnabert-rm analyze curves runs/randommask runs/fixed --output curves.png\n"
    "dnabert-rm analyze report runs/randommask runs/fixed --gue results --output report.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command each."""
    commands = parser.add_subparsers(metavar="KIND", required=True)
    _add_curves(commands)
    _add_embeddings(commands)
    _add_attention(commands)
    _add_images(commands)
    _add_compare(commands)
    _add_masking(commands)
    _add_report(commands)


def run(args: argparse.Namespace) -> None:
    """Run the sub-command that was named."""
    try:
        args.analysis(args)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; check the path") from None


def _command(commands: Any, name: str, text: str, run_it: Callable[[argparse.Namespace], None], example: str) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=f"example:\n  dnabert-rm analyze {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(analysis=run_it, parser=parser)
    return parser


def _add_curves(commands: Any) -> None:
    parser = _command(
        commands, "curves", "several runs on one picture: losses with their phases, accuracy, learning rate", _curves,
        "runs/randommask runs/fixed --names RandomMask,fixed --output curves.png",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture (.png, .svg or .pdf); what "
                        "it draws is written beside it as .csv")  # fmt: skip
    _add_names(parser)
    parser.add_argument("--smooth", type=int, default=0, metavar="N", help="logged steps of the running mean, an odd "
                        "number; 1: none (default: a fiftieth of the run's)")  # fmt: skip


def _add_names(parser: Any) -> None:
    parser.add_argument("--names", default="", metavar="A,B", help="the runs' names (default: their folders')")
    parser.add_argument("--x", choices=("steps", "tokens"), default="steps", help="axis of the curves (steps)")


def _curves(args: argparse.Namespace) -> None:
    from dnabert_rm.analysis.curves import curves_csv, curves_figure, make_curves
    from dnabert_rm.analysis.figures import check_picture_name, save_figure

    check_picture_name(args.output)
    if args.smooth < 0 or (args.smooth and args.smooth % 2 == 0):
        raise ConfigError(f"--smooth {args.smooth}: must be an odd number, so that as many lie before a step as after")
    runs = _runs(args)
    curves = make_curves(runs, args.smooth)
    save_figure(curves_figure(runs, curves, args.x, args.smooth), args.output)
    table = args.output.with_suffix(".csv")
    table.write_text(curves_csv(curves), encoding="utf-8")
    print(f"{args.output}\n{table}")


def _runs(args: argparse.Namespace) -> Any:
    from dnabert_rm.analysis.run_records import read_runs

    return read_runs(args.runs, _words(args.names))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def _add_model(parser: Any, needed_by: str) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="an exported model, a run folder (its last "
                        "checkpoint), or one of its step_… folders")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder for {needed_by} (default: RUN/analysis, "
                        "where the report finds them; needed for an exported model)")  # fmt: skip


def _add_embeddings(commands: Any) -> None:
    parser = _command(
        commands, "embeddings", "t-SNE and silhouette of the k-mer embeddings by the two central bases", _embeddings,
        "runs/first",
    )  # fmt: skip
    _add_model(parser, "embeddings.png, .csv, .json")
    parser.add_argument("--steps", metavar="N,N", help="checkpoints of a run to score (default: all)")
    parser.add_argument("--points", type=int, default=4096, metavar="N", help="k-mers to take, a random sample where "
                        "there are more (%(default)s)")  # fmt: skip
    parser.add_argument("--perplexity", type=float, default=30.0, metavar="P", help="of t-SNE (%(default)g)")
    parser.add_argument("--metric", choices=("euclidean", "cosine"), default="euclidean", help="of t-SNE (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of t-SNE and the sample (%(default)s)")


def _embeddings(args: argparse.Namespace) -> None:
    suppress_library_output()
    from dnabert_rm.analysis.model_pictures import embeddings

    if args.points < 32 or not args.perplexity > 0:
        raise ConfigError("--points must be at least 32, and --perplexity above 0")
    with contextlib.redirect_stdout(sys.stderr):
        written = embeddings(args)
    print("\n".join(map(str, written)))


def _add_attention(commands: Any) -> None:
    parser = _command(
        commands, "attention", "entropy, mass on 5 tokens and maps of every layer's attention", _attention,
        "runs/first --data prepared",
    )  # fmt: skip
    _add_model(parser, "attention.json and three pictures")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="prepared folder to take windows from")
    source.add_argument("--fasta", metavar="FILE", help="FASTA to cut windows from, plain or gzip")
    parser.add_argument("--split", help="split of --data (default: val, or train where there is no val)")
    parser.add_argument("--window", type=int, metavar="N", help="tokens a window, [CLS] and [SEP] included (default: "
                        "that of the pretraining, at most 512)")  # fmt: skip
    parser.add_argument("--windows", type=int, default=16, metavar="N", help="windows (%(default)s)")
    parser.add_argument("--step", type=int, help="the run's checkpoint of this step (default: the last)")
    parser.add_argument("--non-overlapping", action="store_true", help="tokens with stride k (default: as pretrained)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of --data's windows (%(default)s)")


def _attention(args: argparse.Namespace) -> None:
    suppress_library_output()
    from dnabert_rm.analysis.model_pictures import attention

    if args.windows < 1 or (args.window is not None and args.window < 4):
        raise ConfigError("--windows must be at least 1, and --window at least 4")
    if args.fasta and args.split:
        raise ConfigError("--split belongs to --data; leave it out with --fasta")
    with contextlib.redirect_stdout(sys.stderr):
        written = attention(args)
    print("\n".join(map(str, written)))


def _add_images(commands: Any) -> None:
    parser = _command(
        commands, "images", "embeddings and attention of each checkpoint as pictures in the run's TensorBoard", _images,
        "runs/first --data prepared --follow",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder, which may still be training")
    parser.add_argument("--data", metavar="DIR", help="prepared folder for the attention (default: embeddings alone)")
    parser.add_argument("--follow", action="store_true", help="wait for checkpoints, until that of the last step")


def _images(args: argparse.Namespace) -> None:
    suppress_library_output()
    from dnabert_rm.analysis.tensorboard_images import images

    with contextlib.redirect_stdout(sys.stderr):
        folder = images(args)
    print(folder)


def _add_compare(commands: Any) -> None:
    parser = _command(
        commands, "compare", "runs side by side: silhouettes over steps, attention by layer", _compare,
        "runs/randommask runs/fixed --output compare.png",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders on which `analyze embeddings` "
                        "and `analyze attention` were run, or the folders that those wrote")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture (.png, .svg or .pdf); what "
                        "it draws is written beside it as .csv")  # fmt: skip
    parser.add_argument("--names", default="", metavar="A,B", help="the runs' names (default: their folders')")


def _compare(args: argparse.Namespace) -> None:
    from dnabert_rm.analysis.compare import compare_csv, compare_figure, read_measured
    from dnabert_rm.analysis.figures import check_picture_name, save_figure
    from dnabert_rm.analysis.report import ANALYSIS_NAME
    from dnabert_rm.analysis.run_records import own_names

    check_picture_name(args.output)
    names = own_names(args.runs, _words(args.names))
    folders = [run / ANALYSIS_NAME if (run / ANALYSIS_NAME).is_dir() else run for run in args.runs]
    runs = [read_measured(folder, name) for folder, name in zip(folders, names, strict=True)]
    save_figure(compare_figure(runs), args.output)
    table = args.output.with_suffix(".csv")
    table.write_text(compare_csv(runs), encoding="utf-8")
    print(f"{args.output}\n{table}")


def _add_masking(commands: Any) -> None:
    parser = _command(
        commands, "masking", "RandomMask's masks at each phase", _masking, "--output masks.png"
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture (.png, .svg or .pdf)")
    parser.add_argument("--view", default="phases", choices=("phases", "hidden"), help="masks of some windows at each"
                        " phase, or the bases that one stretch of each span hides (%(default)s)")  # fmt: skip
    parser.add_argument("--k", type=int, default=6, help="bases of a k-mer (%(default)s)")
    parser.add_argument("--steps", type=int, default=480_000, help="steps of the run (%(default)s)")
    parser.add_argument("--draw", default="uniform", choices=("uniform", "max"), help="span of a window (%(default)s)")
    parser.add_argument("--replacement", default="token", choices=("token", "span"), help="what 80/10/10 is drawn for")


def _masking(args: argparse.Namespace) -> None:
    from dnabert_rm.analysis.figures import check_picture_name, save_figure
    from dnabert_rm.analysis.mask_figures import hidden_figure, masks_figure
    from dnabert_rm.genome.kmer import check_k
    from dnabert_rm.masking.schedule import make_schedule

    check_picture_name(args.output)
    schedule = make_schedule("randommask", k=check_k(args.k), total_steps=args.steps, draw=args.draw)
    if args.view == "hidden":
        figure = hidden_figure(schedule.spans[-1][::2], k=args.k)
    else:
        figure = masks_figure(schedule, k=args.k, replacement=args.replacement)
    save_figure(figure, args.output)
    print(args.output)


def _add_report(commands: Any) -> None:
    parser = _command(
        commands, "report", "one HTML page on runs: results, figures, settings, speed, GUE", _report,
        "runs/randommask runs/fixed --gue results --output report.html",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--gue", nargs="+", type=Path, default=[], metavar="DIR", help="--output of `dnabert-rm gue`")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page, e.g. report.html")
    _add_names(parser)


def _report(args: argparse.Namespace) -> None:
    from dnabert_rm.analysis.report import write_report

    if args.output.is_dir():
        raise ConfigError(f"--output {args.output}: is a folder; name a file in it, e.g. report.html")
    for sentence in write_report(args.output, _runs(args), args.gue, args.x):
        print(f"note: {sentence}", file=sys.stderr)
    print(args.output)
