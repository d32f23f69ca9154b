"""Check Hugging Face model folders and map the models' dimensions to `[model]` fields. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnabert_rm.genome import kmer
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
"""Names in `[model]`, mapped to transformers' names, which DNABERT's config.json also uses."""
NAME_EXPORTED = "pass a folder that `dnabert-rm export` wrote"
NAME_FINETUNED = "pass the model/ folder that `dnabert-rm finetune` wrote"


def model_fields(folder: str | Path) -> dict[str, Any]:
    """Return the architecture and sizes of the model in `folder`, named as in `config.ModelConfig`.

    Raises `CheckpointError` unless the folder has a config.json that describes a BERT or ModernBERT model.
    """
    path = Path(folder) / "config.json"
    content = read_json(
        path, error=CheckpointError, advice="fix the file", missing="pass a Hugging Face folder with --init-from"
    )
    # DNABERT was saved by transformers 2, which wrote no model_type.
    architecture = content.get("model_type") or (
        "bert" if "BertForMaskedLM" in (content.get("architectures") or []) else ""
    )
    missing = [name for name in _FIELDS.values() if not isinstance(content.get(name), int)]
    if architecture not in ("bert", "modernbert") or missing:
        reason = f"model_type {architecture!r}" if not missing else f"no {missing[0]}"
        raise CheckpointError(f"{path}: {reason}; choose a BERT or ModernBERT model")
    return {"architecture": architecture, **{ours: content[theirs] for ours, theirs in _FIELDS.items()}}


def check_vocabulary(folder: str | Path, k: int | None, vocab_size: int) -> None:
    """Raise `CheckpointError` unless the model in `folder` has the vocabulary of the data.

    The size is always compared. The order of the tokens is compared if the folder has a vocab.txt and `k` is not None.
    """
    folder = Path(folder)
    embedded = read_json(folder / "config.json", error=CheckpointError).get("vocab_size")
    if embedded != vocab_size:
        raise CheckpointError(
            f"{folder}: has a vocabulary of {embedded} tokens, but the data has {vocab_size}; "
            "build the data with the model's k"
        )
    path = folder / "vocab.txt"
    if k is not None and path.is_file() and path.read_text(encoding="utf-8").split() != kmer.vocabulary_text(k).split():
        raise CheckpointError(f"{path}: is not the {k}-mer vocabulary of the data; choose another model")


def check_model_folder(folder: Path, advice: str = NAME_EXPORTED) -> None:
    """Raise `CheckpointError` if `folder` has no config.json.

    The message ends with `advice`, or names the subfolder `model` if that has a config.json.
    """
    if (folder / "config.json").is_file():
        return
    below = folder / "model"
    if (below / "config.json").is_file():
        advice = f"pass {below}"
    fault = "it has no config.json" if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder}: {fault}; {advice}")
