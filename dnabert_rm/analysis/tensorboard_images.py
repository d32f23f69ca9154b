"""TensorBoard figures of a run's checkpoints: t-SNE of the k-mer embeddings, and attention.

`dnabert-rm analyze images` draws the figures during or after training. Training does not wait for the figures, because
the command is a separate process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dnabert_rm.analysis.attention import attention_batches, attention_record, summarize, windows_of_data
from dnabert_rm.analysis.attention_figures import layers_figure, maps_figure
from dnabert_rm.analysis.encoder import Encoder, is_run, load_encoder
from dnabert_rm.analysis.figures import new_figure
from dnabert_rm.analysis.kmer_map import map_figure, map_kmers
from dnabert_rm.analysis.model_pictures import MAX_DEFAULT_WINDOW, check_same_k, model_title
from dnabert_rm.analysis.report import ANALYSIS_NAME
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, complete_steps
from dnabert_rm.config import load_config_file, resolve
from dnabert_rm.train.metrics import TENSORBOARD_NAME
from dnabert_rm.utils.errors import CheckpointError, ConfigError
from dnabert_rm.utils.files import write_json

IMAGES_NAME = "images"
DONE_NAME = "images.json"
_POLL_SECONDS = 20.0


def write_images(run: Path, *, data: str | None = None, follow: bool = False) -> Path:
    """Add figures to TensorBoard for each checkpoint that has no figures yet. Return the folder of the event files.

    `data` is the folder of prepared data for attention figures. If `data` is None, only the embeddings are drawn. If
    `follow` is true, wait for new checkpoints until the last step of the run has figures.
    """
    if not is_run(run):
        raise ConfigError(f"{run}: not a run folder; pass the --output of a pretraining run")
    new_figure(1, 1)  # A missing matplotlib is reported here, before any checkpoint is loaded.
    train = resolve(load_config_file(str(run / CONFIG_NAME))).train
    last_step = min(train.steps, train.stop_after or train.steps)
    folder = run / TENSORBOARD_NAME / IMAGES_NAME
    record = run / ANALYSIS_NAME / DONE_NAME
    done: list[int] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    with SummaryWriter(str(folder)) as writer:
        while True:
            for step in [step for step in complete_steps(run) if step not in done]:
                if add_images(writer, run, step, data):
                    done.append(step)
                    write_json(record, done)
            if not follow or last_step in done:
                return folder
            time.sleep(_POLL_SECONDS)


def add_images(writer: SummaryWriter, run: Path, step: int, data: str | None) -> bool:
    """Add figures and scores of one checkpoint to TensorBoard. Return False if training has deleted the checkpoint."""
    try:
        encoder = load_encoder(run, step, attention="eager")
    except CheckpointError as error:
        if step in complete_steps(run):
            raise
        print(f"step {step}: skipped, because training has deleted this checkpoint ({error})", file=sys.stderr)
        return False
    title = model_title(run, step)
    if encoder.k is not None:
        kmer_map = map_kmers(encoder.embeddings, encoder.k)
        writer.add_figure("embeddings/t-SNE of the k-mers", map_figure(kmer_map, title), step)
        for name, score in kmer_map.scores.items():
            writer.add_scalar(f"embeddings/{name}", score, step)
    if data:
        _add_attention(writer, encoder, data, title, step)
    writer.flush()
    print(f"step {step}: done", file=sys.stderr)
    return True


def _add_attention(writer: SummaryWriter, encoder: Encoder, data: str, title: str, step: int) -> None:
    window = min(MAX_DEFAULT_WINDOW, encoder.window)
    ids, _, k = windows_of_data(
        data, split=None, window=window, num_windows=16, overlapping=encoder.overlapping, seed=0
    )
    check_same_k(data, k, encoder)
    layers = summarize(attention_batches(encoder.model, ids))
    writer.add_figure("attention/layers", layers_figure(layers, title), step)
    writer.add_figure("attention/maps", maps_figure(layers, title), step)
    for layer in attention_record(layers):
        for name in ("entropy_share", "top5_mass"):
            writer.add_scalar(f"attention_{name}/layer_{layer['layer']:02}", layer[name], step)
