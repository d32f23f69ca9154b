"""Check Hugging Face model folders and read the models' sizes as `ModelConfig` fields. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnabert_rm.genome import kmer
from dnabert_rm.genome.vocabulary import STOCK_FILE, VOCAB_FILE, k_of_vocabulary, read_vocabulary, vocabulary_files
from dnabert_rm.utils.errors import CheckpointError, DataError
from dnabert_rm.utils.files import read_json, sha256_of_file

_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
"""Names in `[model]`, mapped to transformers' names, which DNABERT's config.json also uses."""
SHAPE_FIELDS = ("architecture", *_FIELDS, "rope_period")
"""Fields of `[model]` that a model's weights determine."""
PROVENANCE_NAME = "pretraining.json"
"""File of an export that records its tokenizer, data and configuration."""
NAME_EXPORTED = "pass a folder that `dnabert-rm export` wrote"
NAME_FINETUNED = "pass the model/ folder that `dnabert-rm finetune` wrote"


def model_fields(folder: str | Path, missing: str = "pass a Hugging Face folder with --init-from") -> dict[str, Any]:
    """Return the architecture and sizes of the model in `folder`, named as in `config.ModelConfig`.

    Raises `CheckpointError` unless the folder has a config.json that describes a BERT or ModernBERT model. `missing` is
    the advice in the error message if there is no config.json.
    """
    path = Path(folder) / "config.json"
    content = read_json(path, error=CheckpointError, advice="fix the file", missing=missing)
    architecture = model_type_of(content)
    absent = [name for name in _FIELDS.values() if not isinstance(content.get(name), int)]
    if architecture not in ("bert", "modernbert") or absent:
        reason = f"model_type {architecture!r}" if not absent else f"no {absent[0]}"
        raise CheckpointError(f"{path}: {reason}; choose a BERT or ModernBERT model")
    sizes = {ours: content[theirs] for ours, theirs in _FIELDS.items()}
    return {"architecture": architecture, **sizes, "rope_period": _rope_period(content)}


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the `model_type` in the content of a config.json, or "" if it is unknown.

    DNABERT's config.json has none, because transformers 2 wrote none. There, it is "bert" if the name of a class in
    `architectures` begins with "Bert".
    """
    classes = config.get("architectures")
    is_bert = isinstance(classes, list) and any(str(name).startswith("Bert") for name in classes)
    return str(config.get("model_type") or ("bert" if is_bert else ""))


def is_same_size(one: Any, other: Any) -> bool:
    """Return whether two values of a field of the model's shape are equal. A period read from a file is rounded."""
    return bool(one == other or (isinstance(one, float) and math.isclose(one, other, rel_tol=1e-8)))


def _rope_period(content: Mapping[str, Any]) -> float:
    """Return the shortest period of the rotary positions in tokens, or 0 if it is transformers' 2π."""
    kinds = content.get("rope_parameters")
    rope = kinds.get("full_attention") if isinstance(kinds, dict) else None
    factor = rope.get("factor") if isinstance(rope, dict) and rope.get("rope_type") == "linear" else None
    return round(2 * math.pi * factor, 9) if isinstance(factor, int | float) else 0.0


def check_vocabulary(folder: str | Path, k: int | None, vocab_size: int, bpe_sha256: str | None = None) -> None:
    """Raise `CheckpointError` unless the model in `folder` has the vocabulary of the data.

    For BPE data, `k` is None and `bpe_sha256` is the SHA-256 of the `.model` file of the data's tokenizer.
    """
    folder = Path(folder)
    embedded = read_json(folder / "config.json", error=CheckpointError).get("vocab_size")
    if embedded != vocab_size:
        raise CheckpointError(
            f"{folder}: has a vocabulary of {embedded} tokens, but the data has {vocab_size}; "
            "build the data with the model's k"
        )
    if k is None:
        _check_bpe(folder, bpe_sha256)
        return
    files = vocabulary_files(folder)
    if not files:
        raise CheckpointError(
            f"{folder}: has neither {VOCAB_FILE} nor {STOCK_FILE}, so its tokens can't be compared with the data's; "
            f"add the {VOCAB_FILE} that the model was pretrained with"
        )
    for path in files:
        if read_vocabulary(path) != kmer.vocabulary(k):
            raise CheckpointError(f"{path}: is not the {k}-mer vocabulary of the data; choose another model")


def _check_bpe(folder: Path, sha256: str | None) -> None:
    """Raise `CheckpointError` if the model in `folder` does not use the BPE tokenizer of the data.

    `sha256` is the SHA-256 of the data's tokenizer. It is compared with the SHA-256 in `pretraining.json`, a file that
    `dnabert-rm export` writes. Without `pretraining.json`, it is compared with the SHA-256 of each `.model` file in
    `folder`. A `vocab.txt` or `tokenizer.json` alone can't be compared, and is rejected only if the tokens are k-mers.
    """
    advice = "choose another model, or build the data with this model's tokenizer"
    models = sorted(folder.glob("*.model"))
    if (folder / PROVENANCE_NAME).is_file():
        content = read_json(folder / PROVENANCE_NAME, error=CheckpointError)
        tokenizer = content.get("tokenizer")
        known = {tokenizer.get("model_sha256")} if isinstance(tokenizer, dict) else set()
        source = folder / PROVENANCE_NAME
    elif models:
        known = {sha256_of_file(path) for path in models}
        source = models[0]
    elif files := vocabulary_files(folder):
        known = set() if k_of_vocabulary(read_vocabulary(files[0])) else {sha256}
        source = files[0]
    else:
        raise CheckpointError(
            f"{folder}: has no tokenizer file, so its tokens can't be compared with the data's; add the .model file "
            "that the model was pretrained with"
        )
    if sha256 not in known:
        raise CheckpointError(f"{source}: is not the BPE tokenizer of the data; {advice}")


def check_model_folder(folder: Path, advice: str = NAME_EXPORTED) -> None:
    """Raise `CheckpointError` if `folder` has no config.json.

    The error message ends with `advice`. If the subfolder `model` has a config.json, the message instead ends with the
    advice to pass that subfolder. A missing folder that looks like a model of the hub gets the command to download it.
    """
    if (folder / "config.json").is_file():
        return
    below = folder / "model"
    if (below / "config.json").is_file():
        advice = f"pass {below}"
    elif len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists():
        advice += f", or download a model of the Hugging Face hub: `hf download {folder} --local-dir FOLDER`"
    fault = "it has no config.json" if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder}: {fault}; {advice}")


def pretraining_data(folder: Path) -> dict[str, Any]:
    """Return the pretraining settings `[data]` recorded in an exported model, or an empty dict if there are none."""
    try:
        return dict(read_json(folder / PROVENANCE_NAME)["config"]["data"])
    except (DataError, KeyError, TypeError):
        return {}
