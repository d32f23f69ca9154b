"""Load encoders from exported models and checkpoints, for analysis of embeddings and attention."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, FOLDER_NAME
from dnabert_rm.export.export_model import export
from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output
from dnabert_rm.finetune.trained_tokens import is_trained_overlapping
from dnabert_rm.inference.model_loading import load_encoder as load_model_encoder
from dnabert_rm.inference.model_loading import open_model_folder
from dnabert_rm.model.pretrained import pretraining_data
from dnabert_rm.tokenizer.vocabulary_files import VOCAB_FILE, read_k
from dnabert_rm.utils.errors import CheckpointError


@dataclass(frozen=True)
class Encoder:
    """A model without its prediction head, in fp32 on the CPU and in evaluation mode."""

    model: PreTrainedModel
    k: int | None
    """Bases per k-mer; None if the model has no k-mer vocabulary."""
    overlapping: bool
    """Whether the model was trained on overlapping tokens."""
    window: int
    """Pretraining window in tokens, including [CLS] and [SEP]. If not recorded, the model's number of positions."""

    @property
    def embeddings(self) -> NDArray:
        """Token embeddings as float32, one row per token of the vocabulary."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight  # type: ignore[union-attr, assignment]
        return weight.detach().numpy()


def is_run(path: Path) -> bool:
    """Return whether `path` is a run folder. Checkpoint folders and exported models are not run folders."""
    return (path / FOLDER_NAME).is_dir()


def load_encoder(path: Path, step: int | None = None, attention: str = "sdpa") -> Encoder:
    """Load the encoder from a Hugging Face folder, a checkpoint folder or a run folder.

    `step` selects a checkpoint of a run; the default is the last checkpoint. A checkpoint is exported to a temporary
    folder and loaded from there, because the export checks the weights. `attention` is the `attn_implementation` of
    transformers. With "eager", the model can return attention weights. Raise `CheckpointError` if loading fails.
    """
    with _model_folder(path, step) as folder:
        source = open_model_folder(folder)
        model = load_model_encoder(source)
        model.set_attn_implementation(attention)
        vocab = source.tokenizer / VOCAB_FILE
        data = pretraining_data(source.base or folder)
        positions = model.config.max_position_embeddings
        return Encoder(
            model,
            k=read_k(vocab) if vocab.is_file() else None,
            overlapping=is_trained_overlapping(*source.folders),
            window=min(positions, int(data.get("window", positions))),
        )


@contextlib.contextmanager
def _model_folder(path: Path, step: int | None) -> Iterator[Path]:
    """Yield `path` if `path` is an exported model.

    Otherwise export the checkpoint to a temporary folder, and yield the exported model.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; pass a run folder, a step_… folder or an exported model")
    if not is_run(path) and not (path / CONFIG_NAME).is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dnabert-rm-") as temporary, suppress_transformers_output():
        yield export(path, Path(temporary) / "model", step).folder
