"""Write a checkpoint's metadata: configuration, tokenizer, data sources and the model's reference output."""

from __future__ import annotations

import dataclasses
import json
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


def write_metadata(
    engine: Any, config: RunConfig, dataset: WindowDataset, records: DataRecords, ranks: Ranks, folder: Path
) -> None:
    """Write the metadata files of a checkpoint to `folder`.

    `engine` is a DeepSpeed engine, and `records` come from `read_data_records`. Every rank must call this, because all
    ranks compute the reference output together. Only rank 0 writes files.
    """
    reference = compute_reference_output(
        engine, dataset.tokenizer.vocab_size, config.data.window, config.train.precision, ranks.device
    )
    if not ranks.is_first:
        return
    save_reference_output(folder / REFERENCE_OUTPUT_NAME, reference)
    write_text(folder / CONFIG_NAME, config.to_toml())
    engine.module.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    write_text(folder / DATA_NAME, json.dumps(records.content, indent=1) + "\n")
    write_text(folder / TOKENIZER_NAME, json.dumps(dataclasses.asdict(dataset.tokenizer), indent=1) + "\n")
    if records.bpe_model is not None:
        (folder / MODEL_NAME).write_bytes(records.bpe_model)
