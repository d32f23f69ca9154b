"""The model card names the weights that a run began from, and the data that it was trained on before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, run_ranks, write_prepared

from dnabert_rm.checkpoint.run_folder import step_folder
from dnabert_rm.data.manifest import MANIFEST_NAME
from dnabert_rm.export.export_model import export

MODEL = "--model.num_layers 1 --model.hidden_size 32 --model.num_heads 2 --model.intermediate_size 32"
SIZES = "--model.max_positions 34 --global-batch 4 --window 32 --workers 0"
FLAGS = f"--preset tiny {MODEL} {SIZES} --ds-config zero0".split()


def write_data(folder: Path, genome: str, seed: int) -> Path:
    write_prepared(folder, [[random_bases(np.random.default_rng(seed), 900)]], k=3)
    content = json.loads((folder / MANIFEST_NAME).read_text())
    content["sources"] = [{"genome": genome, "file": f"{genome}.fa", "bytes": 9, "sha256": "0" * 64}]
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    return folder


def card(model: Path) -> list[str]:
    return (model / "README.md").read_text().splitlines()


@pytest.mark.timeout(400)
def test_the_card_names_initial_weights_and_earlier_data(tmp_path: Path) -> None:
    fly, man = write_data(tmp_path / "fly", "fly", 0), write_data(tmp_path / "man", "man", 1)
    run_ranks(1, *FLAGS, "--data", fly, "--output", tmp_path / "first", "--steps", 2)
    export(tmp_path / "first", tmp_path / "one")
    assert "| genomes | fly |" in card(tmp_path / "one")
    assert not any("began from" in line or "earlier data" in line for line in card(tmp_path / "one"))

    begun = [*FLAGS, "--output", tmp_path / "second", "--init-from", tmp_path / "one", "--save-every", 1]
    run_ranks(1, *begun, "--data", fly, "--steps", 3, "--stop-after", 1)
    (tmp_path / "one" / "pretraining.json").unlink()  # a resumed run keeps what its checkpoint recorded
    printed = run_ranks(1, *begun, "--data", man, "--steps", 3, "--stop-after", 2, "--allow-changes")
    assert "data fingerprint was" in printed
    run_ranks(1, *begun, "--data", man, "--steps", 3)
    facts = json.loads((step_folder(tmp_path / "second", 3) / "data.json").read_text())
    assert [(one["last_step"], one["sources"][0]["genome"]) for one in facts["earlier"]] == [(1, "fly")]
    export(tmp_path / "second", tmp_path / "two")
    lines = card(tmp_path / "two")
    assert "| genomes | man |" in lines
    assert f"| began from | `{tmp_path / 'one'}`, pretrained on fly |" in lines
    fingerprint = facts["earlier"][0]["fingerprint"]
    assert f"| earlier data | fly, up to step 1 (fingerprint `{fingerprint}`) |" in lines
