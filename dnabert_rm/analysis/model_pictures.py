"""What `dnabert-rm analyze embeddings` and `attention` do: load a model, measure, write pictures and numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dnabert_rm.analysis import attention_figures
from dnabert_rm.analysis.attention import (
    attention_batches,
    attention_record,
    summarise,
    windows_of_data,
    windows_of_records,
)
from dnabert_rm.analysis.encoder import Encoder, is_run, load_encoder
from dnabert_rm.analysis.figures import new_figure, save_figure
from dnabert_rm.analysis.kmer_map import map_csv, map_figure, map_kmers, parse_steps, steps_figure
from dnabert_rm.analysis.report import ANALYSIS_NAME
from dnabert_rm.checkpoint.run_folder import complete_steps, step_of
from dnabert_rm.genome.fasta_stream import Input, fasta_records
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import check_readable_file, write_json

MAX_DEFAULT_WINDOW = 512


def output_folder(args: argparse.Namespace) -> Path:
    """`--output`, or the run's own folder for pictures."""
    if args.output is not None:
        if args.output.exists() and not args.output.is_dir():
            raise DataError(f"--output {args.output}: is a file; name a folder")
        return args.output
    if is_run(args.model):
        return args.model / ANALYSIS_NAME
    raise ConfigError(f"{args.model}: is no run folder, so there is no default for --output; name a folder")


def shown(model: Path, step: int | None = None) -> str:
    """The model's name in a title; a checkpoint folder's is its run's."""
    model = model.resolve()
    name = model.parent.parent.name if step_of(model) is not None else model.name
    return name if step is None else f"{name} after {step:,} steps"


def embeddings(args: argparse.Namespace) -> list[Path]:
    """Map the last checkpoint, score all; returns the files written."""
    folder = output_folder(args)
    new_figure(1, 1)  # without matplotlib it ends here, not after minutes of t-SNE
    steps: list[int | None] = [step_of(args.model)]
    if is_run(args.model):
        saved = complete_steps(args.model)
        # No checkpoint at all: loading says so.
        steps = [*(parse_steps(args.steps, saved) if args.steps else saved)] or [None]
    elif args.steps:
        raise ConfigError(f"--steps: {args.model} is one model; name the run folder to choose among its checkpoints")
    options = {"metric": args.metric, "perplexity": args.perplexity, "max_kmers": args.points, "seed": args.seed}
    found, by_step = None, {}
    for step in steps:
        encoder = load_encoder(args.model, step if is_run(args.model) else None)
        if encoder.k is None:
            raise ConfigError(f"{args.model}: its tokens are no k-mers, so they have no central bases")
        found = map_kmers(encoder.embeddings, encoder.k, plane=step == steps[-1], **options)
        by_step[step] = found.scores
        told = ", ".join(f"{name.removeprefix('silhouette_')} {value:.4f}" for name, value in found.scores.items())
        print(f"{'model' if step is None else f'step {step}'}: silhouette: {told}", file=sys.stderr)
    assert found is not None
    record = {
        "model": str(args.model), "k": found.k, "kmers": len(found.ids), "labels": "the two central bases",
        "seed": args.seed, "tsne": {"metric": args.metric, "perplexity": found.perplexity, "init": "pca"},
        "silhouettes": [{"step": step, **scores} for step, scores in by_step.items()],
    }  # fmt: skip
    written = [folder / "embeddings.png", folder / "embeddings.csv"]
    save_figure(map_figure(found, shown(args.model, steps[-1])), written[0])
    written[1].write_text(map_csv(found), encoding="utf-8")
    written.append(write_json(folder / "embeddings.json", record))
    if len(by_step) > 1:
        written.append(folder / "embeddings_steps.png")
        scores_of = {int(step or 0): scores for step, scores in by_step.items()}
        save_figure(steps_figure(scores_of, shown(args.model)), written[-1])
    return written


def attention(args: argparse.Namespace) -> list[Path]:
    """Measure the attention on windows; returns the files written."""
    folder = output_folder(args)
    new_figure(1, 1)
    if args.fasta:
        check_readable_file(args.fasta, "a FASTA file")
    step = args.step
    if is_run(args.model) and step is None:
        step = next(reversed(complete_steps(args.model)), None)
    encoder = load_encoder(args.model, step, attention="eager")
    overlapping = encoder.overlapping and not args.non_overlapping
    positions = encoder.model.config.max_position_embeddings
    window = args.window or min(MAX_DEFAULT_WINDOW, encoder.window)
    if window > positions:
        raise ConfigError(f"--window {window}: the model has {positions} positions; lower it")
    input_ids, source = _windows(args, encoder, window, overlapping)
    layers = summarise(attention_batches(encoder.model, input_ids))
    title = f"{shown(args.model, step)}, {len(input_ids)} windows of {window} tokens"
    figures = {
        "attention_layers.png": attention_figures.layers_figure,
        "attention_maps.png": attention_figures.maps_figure,
        "attention_cls.png": attention_figures.cls_figure,
    }
    for name, draw in figures.items():
        save_figure(draw(layers, title), folder / name)
    record = {
        "model": str(args.model), "step": step, **source, "windows": len(input_ids), "window": window,
        "overlapping": overlapping, "masked": False, "layers": attention_record(layers),
    }  # fmt: skip
    return [*(folder / name for name in figures), write_json(folder / "attention.json", record)]


def _windows(args: argparse.Namespace, encoder: Encoder, window: int, overlapping: bool) -> tuple[Any, dict[str, Any]]:
    """Windows of token ids, and where they are from for the record."""
    options = {"window": window, "num_windows": args.windows, "overlapping": overlapping}
    if args.fasta:
        if encoder.k is None:
            raise ConfigError(f"{args.model}: its tokens are no k-mers; name prepared data with --data")
        with Input(args.fasta, "a FASTA file") as source:
            records = fasta_records(source.lines(), source.shown)
            return windows_of_records(records, source.shown, encoder.k, **options), {"fasta": args.fasta}
    ids, split, k = windows_of_data(args.data, split=args.split, seed=args.seed, **options)
    if k != encoder.k:
        raise ConfigError(f"--data {args.data}: tokens of k = {k}, but the model's k is {encoder.k}")
    return ids, {"data": args.data, "split": split}
