"""`dnabert-rm analyze images`: pictures of a run's checkpoints in its TensorBoard, while it trains or afterwards.

A process of its own looks at the checkpoints, so no GPU waits for a t-SNE.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dnabert_rm.analysis.attention import attention_batches, attention_record, summarise, windows_of_data
from dnabert_rm.analysis.attention_figures import layers_figure, maps_figure
from dnabert_rm.analysis.encoder import Encoder, is_run, load_encoder
from dnabert_rm.analysis.figures import new_figure
from dnabert_rm.analysis.kmer_map import map_figure, map_kmers
from dnabert_rm.analysis.model_pictures import MAX_DEFAULT_WINDOW, shown
from dnabert_rm.analysis.report import ANALYSIS_NAME
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, complete_steps
from dnabert_rm.config import load_config_file, resolve
from dnabert_rm.train.metrics import TENSORBOARD_NAME
from dnabert_rm.utils.errors import CheckpointError, ConfigError
from dnabert_rm.utils.files import write_json

IMAGES_NAME = "images"
DONE_NAME = "images.json"
_LOOK_SECONDS = 20.0


def images(args: argparse.Namespace) -> Path:
    """Add what is new, and with `--follow` what comes until the run's last step; returns the TensorBoard folder."""
    run: Path = args.model
    if not is_run(run):
        raise ConfigError(f"{run}: is no run folder; name the --output of a pretraining run")
    new_figure(1, 1)  # without matplotlib it ends here
    train = resolve(load_config_file(str(run / CONFIG_NAME))).train
    last_step = min(train.steps, train.stop_after or train.steps)
    folder, record = run / TENSORBOARD_NAME / IMAGES_NAME, run / ANALYSIS_NAME / DONE_NAME
    done: list[int] = json.loads(record.read_text()) if record.is_file() else []
    with SummaryWriter(str(folder)) as writer:
        while True:
            for step in [step for step in complete_steps(run) if step not in done]:
                if add_images(writer, run, step, args.data):
                    done.append(step)
                    write_json(record, done)
            if not args.follow or last_step in done:
                return folder
            time.sleep(_LOOK_SECONDS)


def add_images(writer: SummaryWriter, run: Path, step: int, data: str | None) -> bool:
    """The pictures and numbers of one checkpoint; False where the run has deleted it meanwhile."""
    try:
        encoder = load_encoder(run, step, attention="eager")
    except CheckpointError as error:
        if step in complete_steps(run):
            raise
        print(f"step {step}: is gone meanwhile ({error})", file=sys.stderr)
        return False
    title = shown(run, step)
    if encoder.k is not None:
        found = map_kmers(encoder.embeddings, encoder.k)
        writer.add_figure("embeddings/t-SNE of the k-mers", map_figure(found, title), step)
        for name, value in found.scores.items():
            writer.add_scalar(f"embeddings/{name}", value, step)
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
    if k != encoder.k:
        raise ConfigError(f"--data {data}: tokens of k = {k}, but the model's k is {encoder.k}")
    layers = summarise(attention_batches(encoder.model, ids))
    writer.add_figure("attention/layers", layers_figure(layers, title), step)
    writer.add_figure("attention/maps", maps_figure(layers, title), step)
    for layer in attention_record(layers):
        for name in ("entropy_share", "top5_mass"):
            writer.add_scalar(f"attention_{name}/layer_{layer['layer']:02}", layer[name], step)
