"""Hash the inputs of fine-tuning runs, to detect changes in the model or tables. This module imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import FinetuneSettings, flag
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import check_readable_file, sha256_of_file


def fingerprints_of(settings: FinetuneSettings) -> dict[str, Any]:
    """Return the `scores.json` entries that identify the content of a run's model and tables."""
    return {"model_sha256": hash_model(settings.model), "data_sha256": hash_tables(settings.tables)}


def changed_inputs(settings: FinetuneSettings, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the flag and path of each input that differs between two results of `fingerprints_of`."""
    hashes = [{"model": record["model_sha256"], **record["data_sha256"]} for record in (earlier, now)]
    names = ("model", *settings.tables)
    return [f"{flag(name)} {getattr(settings, name)}" for name in names if hashes[0].get(name) != hashes[1].get(name)]


def hash_model(folder: Path) -> str:
    """Return one SHA-256 for a model folder, computed from its configuration, vocabulary and weight files.

    Raise `CheckpointError` if the folder contains no model.
    """
    check_model_folder(folder)
    # tokenizer.json is hashed only if the vocabulary is read from it.
    vocabulary = "vocab.txt" if (folder / "vocab.txt").is_file() else "tokenizer.json"
    patterns = ("config.json", vocabulary, "*.safetensors", "*.bin")
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    lines = [f"{sha256_of_file(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tables(tables: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each table, keyed by split. Raise `DataError` if a table can't be read."""
    for path in tables.values():
        check_readable_file(path, "a CSV or TSV table")
    try:
        return {split: sha256_of_file(path) for split, path in tables.items()}
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror}); check the file") from None
