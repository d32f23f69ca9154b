"""Metadata of a checkpoint: configuration, tokenizer, data sources and the model's reference output."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.compatibility import FINGERPRINT
from dnabert_rm.checkpoint.reference_output import compute_reference_output, save_reference_output
from dnabert_rm.checkpoint.resume import Start
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, DATA_NAME, REFERENCE_OUTPUT_NAME, TOKENIZER_NAME
from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.data.manifest import SourceInfo
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.genome.bpe_model import MODEL_NAME
from dnabert_rm.model.pretrained import PROVENANCE_NAME
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import read_json_or_empty, write_text


def make_metadata(
    engine: Any, config: RunConfig, dataset: WindowDataset, provenance: DataProvenance, ranks: Ranks
) -> Callable[[Path], None]:
    """Compute the metadata of a checkpoint, and return a function that writes it to a folder.

    `engine` is a DeepSpeed engine, and `provenance` comes from `read_data_provenance`. Every rank must call this,
    because all ranks compute the reference output together. Only rank 0 should call the returned function, from any
    thread.
    """
    reference = compute_reference_output(
        engine, dataset.tokenizer.vocab_size, config.data.window, config.train.precision, ranks.device
    )
    architecture = engine.module.model.config

    def write(folder: Path) -> None:
        save_reference_output(folder / REFERENCE_OUTPUT_NAME, reference)
        write_text(folder / CONFIG_NAME, config.to_toml())
        architecture.save_pretrained(folder)
        write_text(folder / DATA_NAME, json.dumps(provenance.content, indent=1) + "\n")
        write_text(folder / TOKENIZER_NAME, json.dumps(dataclasses.asdict(dataset.tokenizer), indent=1) + "\n")
        if provenance.bpe_model is not None:
            (folder / MODEL_NAME).write_bytes(provenance.bpe_model)

    return write


@dataclass(frozen=True)
class DataProvenance:
    """Origin of a run's data, which is written to each of its checkpoints."""

    bpe_model: bytes | None
    """The SentencePiece model; None for k-mers."""
    content: dict[str, Any]
    """Content of `data.json`: `sources`; `init_from` if the run began with pretrained weights; `earlier` if the run
    trained on other data before."""


def read_data_provenance(start: Start, dataset: WindowDataset) -> DataProvenance:
    """Collect the origin of a run's data. Call this function when the run starts.

    Raises `DataError` if the BPE tokenizer's file is missing, or is not the file that the shards were made with.
    """
    content: dict[str, Any] = {
        "sources": [dataclasses.asdict(source) for reader in dataset.readers for source in reader.manifest.sources]
    }
    saved = read_json_or_empty(start.checkpoint / DATA_NAME) if start.checkpoint else {}
    if start.init_from:
        content["init_from"] = saved.get("init_from") or _describe_model(Path(start.init_from))
    earlier = saved.get("earlier") or []
    for change in start.changes:
        if change.field == FINGERPRINT:
            ended = {"last_step": start.state.step, "fingerprint": change.old, "sources": saved.get("sources") or []}
            earlier = [*earlier, ended]
    if earlier:
        content["earlier"] = earlier
    return DataProvenance(_read_bpe_model(dataset), content)


def _describe_model(folder: Path) -> dict[str, Any]:
    """Return a pretrained model's folder, and the fingerprint and sources of its training data.

    If the folder has no `pretraining.json` from `dnabert-rm export`, the fingerprint is None and the sources are [].
    """
    facts = read_json_or_empty(folder / PROVENANCE_NAME)
    sources: list[dict[str, Any]] = []
    with contextlib.suppress(TypeError):
        sources = [dataclasses.asdict(SourceInfo(**source)) for source in facts.get("sources") or []]
    return {"folder": str(folder), "fingerprint": facts.get("data_fingerprint"), "sources": sources}


def _read_bpe_model(dataset: WindowDataset) -> bytes | None:
    if dataset.tokenizer.model is None:
        return None
    reader = dataset.readers[0]
    content = reader.folder.read(dataset.tokenizer.model)
    if hashlib.sha256(content).hexdigest() != dataset.tokenizer.model_sha256:
        raise DataError(
            f"{reader.folder.shown}: {dataset.tokenizer.model} is not the BPE model that made the shards; restore the "
            "file"
        )
    return content
