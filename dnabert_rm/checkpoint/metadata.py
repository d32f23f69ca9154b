"""Write a checkpoint's metadata: configuration, tokenizer, data sources and the model's reference output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.reference_output import compute_reference_output, save_reference_output
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, DATA_NAME, REFERENCE_OUTPUT_NAME, TOKENIZER_NAME
from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.genome.bpe_model import MODEL_NAME
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import write_text


def write_metadata(
    engine: Any, config: RunConfig, dataset: WindowDataset, bpe_model: bytes | None, ranks: Ranks, folder: Path
) -> None:
    """Write the metadata files of a checkpoint to `folder`.

    `engine` is a DeepSpeed engine, and `bpe_model` the result of `read_bpe_model`. Every rank must call this, because
    all ranks compute the reference output together. Only rank 0 writes files.
    """
    reference = compute_reference_output(
        engine, dataset.tokenizer.vocab_size, config.data.window, config.train.precision, ranks.device
    )
    if not ranks.is_first:
        return
    save_reference_output(folder / REFERENCE_OUTPUT_NAME, reference)
    write_text(folder / CONFIG_NAME, config.to_toml())
    engine.module.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    sources = [dataclasses.asdict(source) for reader in dataset.readers for source in reader.manifest.sources]
    write_text(folder / DATA_NAME, json.dumps({"sources": sources}, indent=1) + "\n")
    write_text(folder / TOKENIZER_NAME, json.dumps(dataclasses.asdict(dataset.tokenizer), indent=1) + "\n")
    if bpe_model is not None:
        (folder / MODEL_NAME).write_bytes(bpe_model)


def read_bpe_model(dataset: WindowDataset) -> bytes | None:
    """Return the SentencePiece model of the data, or None for k-mers.

    Raises `DataError` if the file is missing or is not the model that made the shards.
    """
    if dataset.tokenizer.model is None:
        return None
    reader = dataset.readers[0]
    content = reader.folder.read(dataset.tokenizer.model)
    if hashlib.sha256(content).hexdigest() != dataset.tokenizer.model_sha256:
        raise DataError(
            f"{reader.folder.shown}: {dataset.tokenizer.model} is not the model that made the shards; restore the file"
        )
    return content
