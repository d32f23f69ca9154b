"""Load exported folders with another release of transformers, in an environment without this package.

`make test-transformers` calls this twice:

    python tests/other_transformers.py write FOLDER      with this package: models, tokenizers, expected outputs
    OTHER/bin/python tests/other_transformers.py check FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

TEXTS = ["ACGTACGTTAGCNACGTTGACCA", "acgttgca", "AC", "ACGTAC[MASK]GTTTGACC", "ACGTTTT ACACACACACACA"]
TOLERANCE = 1e-4


def outputs(folder: Path) -> dict:
    """Return the ids of all texts, and the sum of the logits of the first one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits
    special = [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.model_max_length]
    return {"ids": tokenizer(TEXTS)["input_ids"], "logits": float(logits.double().sum()), "special": special}


def write(root: Path) -> None:
    """Write small models with random weights, their tokenizers, and the outputs of this environment."""
    from data_prep.cli import main as data_prep
    from dnabert_rm.model.build import transformers_config
    from dnabert_rm.tokenizer import KmerTokenizer
    from dnabert_rm.tokenizer.bpe_tokenizer import write_bpe_files

    root.mkdir(parents=True, exist_ok=True)
    data_prep(["simulate", "--out", str(root / "genome"), "--bases", "200000", "--rows", "3"])
    bpe = root / "bpe.model"
    data_prep(["train-bpe", str(root / "genome/genome.fa"), "--vocab-size", "512", "--out", str(bpe), "--workers", "1"])
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 128}
    for name, architecture, vocab_size in (
        ("bert-6mer", "bert", 4101),
        ("bert-6mer-non-overlapping", "bert", 4101),
        ("bert-bpe", "bert", 512),
        ("modernbert-3mer", "modernbert", 69),
    ):
        torch.manual_seed(0)
        config = transformers_config(architecture=architecture, vocab_size=vocab_size, dropout=0.0, **sizes)
        AutoModelForMaskedLM.from_config(config).save_pretrained(root / name)
        if "bpe" in name:
            write_bpe_files(root / name, bpe, 128)
        else:
            k = 3 if vocab_size == 69 else 6
            KmerTokenizer(k, overlapping="non" not in name, model_max_length=128).save_pretrained(root / name)
        (root / name / "expected.json").write_text(json.dumps(outputs(root / name)), encoding="utf-8")


def check(root: Path) -> None:
    """Compare every folder that this release should load with the expected outputs."""
    assert "dnabert_rm" not in sys.modules
    release = tuple(map(int, transformers.__version__.split(".")[:2]))
    for expected_file in sorted(root.glob("*/expected.json")):
        folder = expected_file.parent
        if "modernbert" in folder.name and release < (5, 17):
            continue
        expected, found = json.loads(expected_file.read_text(encoding="utf-8")), outputs(folder)
        assert abs(found.pop("logits") - expected.pop("logits")) < TOLERANCE, folder
        assert found == expected, (folder, found, expected)
        print(f"transformers {transformers.__version__}: {folder.name}: the same ids and logits")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
