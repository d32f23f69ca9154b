"""A folder in DNABERT's layout gives the same results as the same model saved by transformers 5."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from model_commands import words_of, write_inputs
from safetensors.torch import load_file
from tiny_models import POSITIONS, save_bert
from transformers import BertForMaskedLM, BertForSequenceClassification

from dnabert_rm.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("data"))


def as_dnabert(folder: Path) -> Path:
    """Rewrite a model as transformers 2 saved it: pickled weights, no model_type, and only a vocab.txt."""
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    config = json.loads((folder / "config.json").read_text())
    for name in ("model_type", "transformers_version", "dtype", "tie_word_embeddings"):
        config.pop(name, None)
    vocabulary = (folder / "vocab.txt").read_text()
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text(vocabulary)
    return folder


@pytest.mark.parametrize("command", ["evaluate bits", "embed", "predict", "score-variants", "finetune"])
def test_a_dnabert_folder_gives_the_same_results(data: Path, tmp_path: Path, command: str) -> None:
    kind = BertForSequenceClassification if command == "predict" else BertForMaskedLM
    results = []
    for layout in ("stock", "dnabert"):
        model = save_bert(tmp_path / layout / "model", kind, problem_type="single_label_classification")
        if layout == "dnabert":
            as_dnabert(model)
        output = tmp_path / layout / "output.csv"
        assert main(words_of(command, model, data, output)) == 0
        written = output / "predictions.csv" if command == "finetune" else output
        results.append(written.read_text().replace(str(tmp_path / layout), ""))
    assert results[0] == results[1]
    assert re.search(r"\d\.\d{3}", results[0])
