"""Figures and JSON files for `dnabert-rm analyze embeddings` and `dnabert-rm analyze attention`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dnabert_rm.analysis.attention import (
    LayerAttention,
    attention_batches,
    attention_record,
    summarize,
    windows_of_data,
    windows_of_records,
)
from dnabert_rm.analysis.attention_figures import cls_figure, layers_figure, maps_figure
from dnabert_rm.analysis.encoder import Encoder, is_run, load_encoder
from dnabert_rm.analysis.figures import check_data_table, new_figure, save_figure
from dnabert_rm.analysis.kmer_map import COLUMNS, KmerMap, map_csv, map_figure, map_kmers, parse_steps, steps_figure
from dnabert_rm.analysis.report import ANALYSIS_NAME
from dnabert_rm.checkpoint.run_folder import complete_steps, step_of
from dnabert_rm.genome.fasta_stream import Input, fasta_records
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import check_readable_file, write_json, write_text

MAX_DEFAULT_WINDOW = 512


def output_folder(model: Path, output: Path | None) -> Path:
    """Return the folder for the figures: `output`, or by default the subfolder "analysis" of the run folder `model`.

    Raise `ConfigError` if `output` is None and `model` is not a run folder. Raise `DataError` if `output` is a file.
    """
    if output is not None:
        if output.exists() and not output.is_dir():
            raise DataError(f"--output {output}: is a file; choose a folder")
        return output
    if is_run(model):
        return model / ANALYSIS_NAME
    raise ConfigError(f"{model}: not a run folder, so --output has no default; pass a folder with --output")


def model_title(model: Path, step: int | None = None) -> str:
    """Return the name of a model or run for a figure title. For a checkpoint folder, return the name of the run."""
    model = model.resolve()
    name = model.parent.parent.name if step_of(model) is not None else model.name
    return name if step is None else f"{name} after {step:,} steps"


def draw_embeddings(
    model: Path,
    *,
    output: Path | None = None,
    steps: str | None = None,
    metric: str = "euclidean",
    perplexity: float = 30.0,
    max_kmers: int = 4096,
    seed: int = 0,
) -> list[Path]:
    """Compute silhouette scores of each checkpoint's k-mer embeddings, and draw a t-SNE map for the last checkpoint.

    `steps` selects checkpoints of a run, e.g. "1000,2000"; the default is all checkpoints. See `map_kmers` for
    the other options. Return the paths of the files written.
    """
    folder = output_folder(model, output)
    written = [folder / "embeddings.png", folder / "embeddings.csv"]
    check_data_table(written[1], COLUMNS)
    new_figure(1, 1)  # A missing matplotlib is reported here, not after minutes of t-SNE.
    chosen = _chosen_steps(model, steps)
    scores_of: dict[int | None, dict[str, float]] = {}
    for step in chosen:
        kmer_map = _map_checkpoint(
            model, step, plane=step == chosen[-1], metric=metric, perplexity=perplexity, max_kmers=max_kmers, seed=seed
        )
        scores_of[step] = kmer_map.scores
        text = ", ".join(f"{name.removeprefix('silhouette_')} {score:.4f}" for name, score in kmer_map.scores.items())
        print(f"{'model' if step is None else f'step {step}'}: silhouette: {text}", file=sys.stderr)
    record = {
        "model": str(model),
        "k": kmer_map.k,
        "kmers": len(kmer_map.ids),
        "labels": "the two central bases",
        "seed": seed,
        "tsne": {"metric": metric, "perplexity": kmer_map.perplexity, "init": "pca"},
        "silhouettes": [{"step": step, **scores} for step, scores in scores_of.items()],
    }
    save_figure(map_figure(kmer_map, model_title(model, chosen[-1])), written[0])
    write_text(written[1], map_csv(kmer_map))
    written.append(write_json(folder / "embeddings.json", record))
    if len(scores_of) > 1:
        written.append(folder / "embeddings_steps.png")
        by_step = {int(step or 0): scores for step, scores in scores_of.items()}
        save_figure(steps_figure(by_step, model_title(model)), written[-1])
    return written


def _chosen_steps(model: Path, steps: str | None) -> list[int | None]:
    """Return the steps of the checkpoints to score, in ascending order.

    The list is [None] if `model` is an exported model or a run without checkpoints.
    """
    if is_run(model):
        saved = complete_steps(model)
        # Without checkpoints, return [None]. Loading the model then raises an error about missing checkpoints.
        return [*(parse_steps(steps, saved) if steps else saved)] or [None]
    if steps:
        raise ConfigError(f"--steps: {model} is a single model; pass the run folder to choose among its checkpoints")
    return [step_of(model)]


def _map_checkpoint(model: Path, step: int | None, **options: Any) -> KmerMap:
    encoder = load_encoder(model, step if is_run(model) else None)
    if encoder.k is None:
        raise ConfigError(f"{model}: its tokens are not k-mers, so they have no central bases; pass a k-mer model")
    return map_kmers(encoder.embeddings, encoder.k, **options)


def draw_attention(
    model: Path,
    *,
    output: Path | None = None,
    data: str | None = None,
    fasta: str | None = None,
    split: str | None = None,
    step: int | None = None,
    window: int | None = None,
    num_windows: int = 16,
    non_overlapping: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Measure and draw the attention on windows of prepared data or a FASTA file. Return the paths of the new files.

    Args:
        model: Run folder, checkpoint folder or exported model.
        output: Folder for the figures; by default a subfolder of the run folder.
        data: Folder of prepared data; used if `fasta` is not set.
        fasta: FASTA file to cut into windows.
        split: Split of the prepared data; by default val, or train if there is no val.
        step: Checkpoint of a run; by default the last.
        window: Tokens per window, including [CLS] and [SEP]; by default as in pretraining, but at most 512.
        num_windows: Maximum number of windows.
        non_overlapping: Use tokens with stride k, even if the model was pretrained on overlapping tokens.
        seed: Seed for choosing windows of prepared data.
    """
    folder = output_folder(model, output)
    new_figure(1, 1)  # A missing matplotlib is reported here, before the model is loaded.
    if fasta:
        check_readable_file(fasta, "a FASTA file")
    if is_run(model) and step is None:
        step = next(reversed(complete_steps(model)), None)
    encoder = load_encoder(model, step, attention="eager")
    positions = encoder.model.config.max_position_embeddings
    window = window or min(MAX_DEFAULT_WINDOW, encoder.window)
    if window > positions:
        raise ConfigError(f"--window {window}: the model has only {positions} positions; pass at most {positions}")
    overlapping = encoder.overlapping and not non_overlapping
    options: dict[str, Any] = {"window": window, "num_windows": num_windows, "overlapping": overlapping}
    if fasta:
        input_ids, source = _fasta_windows(model, encoder, fasta, **options)
    else:
        input_ids, source = _prepared_windows(encoder, data or "", split=split, seed=seed, **options)
    layers = summarize(attention_batches(encoder.model, input_ids))
    title = f"{model_title(model, step)}, {len(input_ids)} windows of {window} tokens"
    settings = {"windows": len(input_ids), "window": window, "overlapping": overlapping, "masked": False}
    record = {"model": str(model), "step": step, **source, **settings, "layers": attention_record(layers)}
    return [*_save_attention_figures(layers, title, folder), write_json(folder / "attention.json", record)]


def _fasta_windows(model: Path, encoder: Encoder, fasta: str, **options: Any) -> tuple[NDArray, dict[str, Any]]:
    """Return token ids, one row per window of a FASTA file, and a dict that names the source in `attention.json`."""
    if encoder.k is None:
        raise ConfigError(f"--fasta needs a k-mer model, but {model} has other tokens; pass prepared data with --data")
    with Input(fasta, "a FASTA file") as source:
        records = fasta_records(source.text_lines(), source.display_name)
        return windows_of_records(records, source.display_name, encoder.k, **options), {"fasta": fasta}


def _prepared_windows(encoder: Encoder, data: str, **options: Any) -> tuple[NDArray, dict[str, Any]]:
    """Return token ids, one row per window of prepared data, and a dict that names the source in `attention.json`."""
    input_ids, split, k = windows_of_data(data, **options)
    check_same_k(data, k, encoder)
    return input_ids, {"data": data, "split": split}


def check_same_k(data: str, k: int | None, encoder: Encoder) -> None:
    """Raise `ConfigError` unless the prepared data and the model use the same k."""
    if k != encoder.k:
        raise ConfigError(
            f"--data {data}: the data have k = {k}, but the model has k = {encoder.k}; pass data with the model's k"
        )


def _save_attention_figures(layers: list[LayerAttention], title: str, folder: Path) -> list[Path]:
    figures = {
        "attention_layers.png": layers_figure,
        "attention_maps.png": maps_figure,
        "attention_cls.png": cls_figure,
    }
    for name, draw in figures.items():
        save_figure(draw(layers, title), folder / name)
    return [folder / name for name in figures]
