"""Metadata of a checkpoint: configuration, tokenizer, data sources and the model's reference output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.data_records import DataRecords
from dnabert_rm.checkpoint.reference_output import compute_reference_output, save_reference_output
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, DATA_NAME, REFERENCE_OUTPUT_NAME, TOKENIZER_NAME
from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.genome.bpe_model import MODEL_NAME
from dnabert_rm.utils.files import write_text


def make_metadata(
    engine: Any, config: RunConfig, dataset: WindowDataset, records: DataRecords, ranks: Ranks
) -> Callable[[Path], None]:
    """Compute the metadata of a checkpoint, and return a function that writes it to a folder.

    `engine` is a DeepSpeed engine, and `records` come from `read_data_records`. Every rank must call this, because all
    ranks compute the reference output together. Only rank 0 should call the returned function, from any thread.
    """
    reference = compute_reference_output(
        engine, dataset.tokenizer.vocab_size, config.data.window, config.train.precision, ranks.device
    )
    architecture = engine.module.model.config

    def write(folder: Path) -> None:
        save_reference_output(folder / REFERENCE_OUTPUT_NAME, reference)
        write_text(folder / CONFIG_NAME, config.to_toml())
        architecture.save_pretrained(folder)
        write_text(folder / DATA_NAME, json.dumps(records.content, indent=1) + "\n")
        write_text(folder / TOKENIZER_NAME, json.dumps(dataclasses.asdict(dataset.tokenizer), indent=1) + "\n")
        if records.bpe_model is not None:
            (folder / MODEL_NAME).write_bytes(records.bpe_model)

    return write
