"""A folder in DNABERT's layout gives the same results as the same model saved by transformers 5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import build
from finetuning import write_classes
from safetensors.torch import load_file
from support import random_bases
from tiny_models import POSITIONS, save_bert, write_fasta
from transformers import BertForMaskedLM, BertForSequenceClassification

from dnabert_rm.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables of two classes, a FASTA file, a VCF and a prepared folder."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_classes(folder)
    contigs = {"t": random_bases(rng, 3000), "v": random_bases(rng, 1000)}
    fasta = write_fasta(folder / "genome.fa", contigs)
    reference = contigs["t"][99]
    alternative = "ACGT".replace(reference, "")[0]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (folder / "one.vcf").write_text(f"{header}t\t100\t.\t{reference}\t{alternative}\t.\t.\t.\n")
    build(fasta, "--out", folder / "prepared", "--k", "3", "--val-contigs", "v")
    return folder


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


def words_of(command: str, model: Path, data: Path, output: Path) -> list[object]:
    """Return the words of a command that reads the model and writes `output` as its result."""
    if command == "finetune":
        tables = ["--train", data / "train.csv", "--test", data / "test.csv", "--max-steps", 3]
        return ["finetune", "--model", model, *tables, "--output", output.parent]
    if command == "evaluate bits":
        quick = ["--hidden", "1", "--window", POSITIONS - 2]
        return ["evaluate", "bits", "--model", model, "--data", data / "prepared", *quick, "--output", output]
    if command == "score-variants":
        return [command, "--model", model, "--vcf", data / "one.vcf", "--fasta", data / "genome.fa", "--output", output]
    return [command, "--model", model, "--input", data / "genome.fa", "--output", output]


RESULTS = {
    "evaluate bits": "bits.json",
    "embed": "embeddings.csv",
    "predict": "predictions.csv",
    "score-variants": "scores.csv",
    "finetune": "predictions.csv",
}


@pytest.mark.parametrize("command", RESULTS)
def test_a_dnabert_folder_gives_the_same_results(data: Path, tmp_path: Path, command: str) -> None:
    kind = BertForSequenceClassification if command == "predict" else BertForMaskedLM
    results = []
    for layout in ("stock", "dnabert"):
        model = save_bert(tmp_path / layout / "model", kind, problem_type="single_label_classification")
        if layout == "dnabert":
            as_dnabert(model)
        output = tmp_path / layout / "output" / RESULTS[command]
        output.parent.mkdir()
        assert main([*map(str, words_of(command, model, data, output))]) == 0
        results.append(output.read_text().replace(str(tmp_path / layout), ""))
    assert results[0] == results[1]
    assert len(set(results[0])) > 10
