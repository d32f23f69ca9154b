"""Small models with random weights, saved as users save them, and slow reference outputs."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, BertConfig, PreTrainedModel

from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output
from dnabert_rm.finetune.tasks import TASK_CLASSES
from dnabert_rm.tokenizer import KmerTokenizer

POSITIONS = 24


def save_bert(
    folder: Path, kind: type[PreTrainedModel], k: int = 3, head: dict[str, Any] | None = None, **options: Any
) -> Path:
    """Save a BERT with weights large enough that its outputs differ; `head` is the content of finetuning.json."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": POSITIONS, "initializer_range": 0.4}
    if head is not None:
        problem_type = TASK_CLASSES[head["task"]].problem_type
        options |= {"id2label": dict(enumerate(head["labels"])), "problem_type": problem_type}
    config = BertConfig(vocab_size=5 + 4**k, **{**sizes, **options})
    with suppress_transformers_output():
        kind(config).save_pretrained(folder)
        overlapping = (head or {}).get("overlapping", True)
        KmerTokenizer(k, overlapping=overlapping).save_pretrained(folder)
    if head is not None:
        (folder / "finetuning.json").write_text(json.dumps(head))
    return folder


@cache
def _loaded(auto_class: Any, folder: Path) -> Any:
    with suppress_transformers_output():
        return auto_class.from_pretrained(folder).eval()


def stock_logits(auto_class: Any, folder: Path, sequence: str) -> np.ndarray:
    """Return the logits (C,) or (W, C) of stock transformers for one unpadded sequence."""
    model = _loaded(auto_class, folder)
    with torch.no_grad():
        return model(**KmerTokenizer.from_pretrained(folder)(sequence, return_tensors="pt")).logits[0].numpy()


def stock_states(folder: Path, sequence: str, layer: int = -1) -> np.ndarray:
    """Return the hidden states (W, H) of one unpadded sequence."""
    model = _loaded(AutoModel, folder)
    inputs = KmerTokenizer.from_pretrained(folder)(sequence, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[layer][0].numpy()


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def write_fasta(path: Path, records: dict[str, str], width: int = 17) -> Path:
    """Write a FASTA file with `width` letters per line."""
    lines = []
    for name, sequence in records.items():
        lines += [f">{name} described", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    path.write_text("\n".join(lines) + "\n")
    return path
