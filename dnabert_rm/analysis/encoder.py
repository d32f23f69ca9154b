"""The encoder of an exported model, or of a run's checkpoint, for looking at its weights and attention."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel

from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, FOLDER_NAME
from dnabert_rm.export.export_model import export
from dnabert_rm.export.model_card import PROVENANCE_NAME
from dnabert_rm.finetune.pretrained_encoder import load_config, suppress_transformers_output
from dnabert_rm.inference.model_runner import load_model
from dnabert_rm.tokenizer.files import VOCAB_FILE, read_k
from dnabert_rm.utils.errors import CheckpointError, DataError
from dnabert_rm.utils.files import read_json


@dataclass(frozen=True)
class Encoder:
    """A model without its head, in fp32 on the CPU, without dropout."""

    model: PreTrainedModel
    k: int | None
    """Bases of its k-mers; None where it has no k-mer vocabulary."""
    overlapping: bool
    """Whether it was pretrained on overlapping tokens."""
    window: int
    """Tokens of its pretraining windows, [CLS] and [SEP] included; all positions where that is not noted."""

    @property
    def embeddings(self) -> NDArray:
        """The token embeddings, (V, H) float32."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight  # type: ignore[union-attr, assignment]
        return weight.detach().numpy()


def is_run(path: Path) -> bool:
    """Whether a folder is a run, not a checkpoint and not a model."""
    return (path / FOLDER_NAME).is_dir()


def load_encoder(path: Path, step: int | None = None, attention: str = "sdpa") -> Encoder:
    """The encoder of a Hugging Face folder, a run's checkpoint of `step` (by default the last), or a checkpoint folder.

    A checkpoint is exported into a temporary folder first, so its weights have passed that check. `attention` is
    transformers' implementation; only "eager" tells its weights. `CheckpointError` where it can't be loaded.
    """
    with _as_model_folder(path, step) as folder:
        # An export for masked tokens has no pooler, and nothing here asks for one.
        model = load_model(AutoModel, folder, load_config(folder), may_lack="pooler.")
        model.set_attn_implementation(attention)
        vocab = folder / VOCAB_FILE
        data, positions = _pretraining_data(folder), model.config.max_position_embeddings
        k = read_k(vocab) if vocab.is_file() else None
        return Encoder(model, k, bool(data.get("overlap", True)), min(positions, int(data.get("window", positions))))


@contextlib.contextmanager
def _as_model_folder(path: Path, step: int | None) -> Iterator[Path]:
    """`path` itself where it is a model's folder, else an export of the checkpoint that is removed afterwards."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; name a run folder, a step_… folder or an exported model")
    if not is_run(path) and not (path / CONFIG_NAME).is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dnabert-rm-") as aside, suppress_transformers_output():
        yield export(path, Path(aside) / "model", step).folder


def _pretraining_data(folder: Path) -> dict[str, Any]:
    """The section `[data]` of the pretraining, as the export notes it; empty where it notes nothing."""
    try:
        return dict(read_json(folder / PROVENANCE_NAME)["config"]["data"])
    except (DataError, KeyError, TypeError):
        return {}
