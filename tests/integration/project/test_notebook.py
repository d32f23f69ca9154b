"""The notebook runs from an exported model to a variant and a motif."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from support import ROOT, random_bases
from tiny_models import save_bert, write_fasta
from transformers import BertForMaskedLM

NOTEBOOK = ROOT / "docs" / "first_look.ipynb"


def test_the_notebook_runs_and_its_results_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path / "model", BertForMaskedLM, k=3, max_position_embeddings=256)
    genome = write_fasta(tmp_path / "genome.fa", {"c1": random_bases(np.random.default_rng(0), 3000)}, width=60)
    for name, value in {"MODEL": tmp_path / "model", "GENOME": genome, "CONTIG": "c1", "START": 501}.items():
        monkeypatch.setenv(name, str(value))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "(400, " in printed and "the eight bases with the lowest mean score" in printed
    pictures = [
        output for cell in book.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    rows = {}
    for name in ("variant", "region"):
        with open(tmp_path / f"{name}.csv", newline="") as file:
            rows[name] = {(row["pos"], row["ref"], row["alt"]): float(row["score"]) for row in csv.DictReader(file)}
    (variant,) = rows["variant"].items()
    assert len(rows["region"]) == 480 and rows["region"][variant[0]] == pytest.approx(variant[1], abs=1e-5)


def test_the_stored_outputs_are_those_of_a_complete_run() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    counts = [cell["execution_count"] for cell in book.cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output["output_type"] for cell in book.cells for output in cell.get("outputs", [])}
    assert "error" not in kinds and "display_data" in kinds
