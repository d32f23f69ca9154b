"""`--init-from`: start a run from a Hugging Face folder or one in DNABERT's layout, or report why it can't."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import random_bases, read_metrics, run_cli, run_ranks, write_prepared
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizer

from dnabert_rm.genome import kmer
from dnabert_rm.model.build import build_model, pretrained_config, transformers_config
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.tokenizer import KmerTokenizer

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
# Neither is transformers' default, so a run that ignores the folder's values has other logits.
SETTINGS = {"hidden_act": "relu", "layer_norm_eps": 1e-3}
FLAGS = ["--preset", "tiny", "--window", "66", "--global-batch", "8", "--log-every", "1", "--workers", "0"]
# Updates too small to change a weight: the export has the weights that were loaded.
NO_UPDATES = ["--steps", "1", "--lr", "1e-30", "--optim.weight_decay", "0"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data") / "prepared", np.random.default_rng(0)
    write_prepared(folder, [[random_bases(rng, 700) for _ in range(4)]], k=4)
    return folder


@pytest.fixture(scope="module")
def dnabert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder in DNABERT's layout: pickled weights, a config.json without model_type, vocab.txt."""
    folder = tmp_path_factory.mktemp("models") / "dnabert"
    folder.mkdir()
    torch.manual_seed(1)
    sizes = {"vocab_size": kmer.vocab_size(4), "max_position_embeddings": 128, **SIZES}
    model = BertForMaskedLM(BertConfig(**sizes, **SETTINGS, initializer_range=0.2))
    weights = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(128)[None]}
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "architectures": ["BertForMaskedLM"],
        "num_labels": 2,
        "finetuning_task": None,
        **sizes,
        **SETTINGS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text(kmer.vocabulary_text(4))
    return folder


def exported(run: Path, output: Path) -> BertForMaskedLM:
    done = run_cli("-m", "dnabert_rm.cli.main", "export", run, "--output", output)
    assert done.returncode == 0, done.stderr
    return AutoModelForMaskedLM.from_pretrained(output)


def logits_of(model: BertForMaskedLM, ids: torch.Tensor) -> torch.Tensor:
    """Return transformers' logits (2, 40, V) without dropout."""
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def token_ids() -> torch.Tensor:
    """Return random k-mer tokens (2, 40)."""
    return torch.randint(5, kmer.vocab_size(4), (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", ["whole", "partitioned"])
def test_a_run_starts_from_a_dnabert_folder(prepared: Path, dnabert: Path, tmp_path: Path, build: str) -> None:
    flags = [*FLAGS, *NO_UPDATES, "--data", prepared, "--init-from", dnabert, "--model.build", build]
    run_ranks(2, *flags, "--output", tmp_path / "run")
    weights = torch.load(dnabert / "pytorch_model.bin", weights_only=True)
    del weights["bert.embeddings.position_ids"]
    model = exported(tmp_path / "run", tmp_path / "model")
    found = model.state_dict()
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-7)
    ids = token_ids()
    expected = logits_of(BertForMaskedLM.from_pretrained(dnabert), ids)
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=0, atol=1e-5)


def test_a_dnabert_folder_has_the_logits_of_transformers(dnabert: Path) -> None:
    """The model that pretraining continues with, against stock transformers."""
    ids = token_ids()
    expected = logits_of(BertForMaskedLM.from_pretrained(dnabert), ids).flatten(0, 1)
    assert expected.std() > 0.5
    network = build_model(pretrained_config(str(dnabert), 0.1, 0.1), seed=0, init_from=str(dnabert))
    with torch.no_grad():
        found = MaskedLM(network, k=4).eval()(ids, torch.arange(ids.numel()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("period", [0.0, 3.0])
def test_a_run_starts_from_an_export_and_resumes_without_it(prepared: Path, tmp_path: Path, period: float) -> None:
    """With ModernBERT. The folder is gone when the same command resumes the run."""
    start = tmp_path / "start"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 96, "max_positions": 128}
    vocabulary = kmer.vocab_size(4)
    config = transformers_config(
        architecture="modernbert", vocab_size=vocabulary, dropout=0.0, rope_period=period, **sizes
    )
    model = build_model(config, 3)
    model.save_pretrained(start)
    KmerTokenizer(4).save_pretrained(start)
    flags = [*FLAGS, "--steps", "6", "--data", prepared, "--init-from", start, "--output", tmp_path / "run"]
    run_ranks(1, *flags, "--stop-after", "3")
    kept = tmp_path / "kept"
    start.rename(kept)
    run_ranks(1, *flags)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(6))
    run_ranks(1, *flags[:-1], tmp_path / "whole", "--init-from", kept)
    assert [row["loss"] for row in read_metrics(tmp_path / "run")] == [
        row["loss"] for row in read_metrics(tmp_path / "whole")
    ]
    assert f"rope_period = {period}" in (tmp_path / "run" / "config.toml").read_text()


def damaged_copy(dnabert: Path, folder: Path, fault: str) -> Path:
    shutil.copytree(dnabert, folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    if fault == "vocabulary":
        lines = kmer.vocabulary_text(4).split()
        (folder / "vocab.txt").write_text("\n".join([*lines[:5], *reversed(lines[5:])]))
    elif fault == "tokenizer.json: is not the 4-mer vocabulary":
        (folder / "vocab.txt").unlink()
        tokens = [*kmer.SPECIAL_TOKENS, *map("".join, itertools.product("ACGT", repeat=4))]
        BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(folder)
        assert not (folder / "vocab.txt").exists()
    elif fault == "add the vocab.txt that the model was pretrained with":
        (folder / "vocab.txt").unlink()
    elif fault == "lacks":
        del weights["bert.encoder.layer.1.output.dense.weight"]
        torch.save(weights, folder / "pytorch_model.bin")
    elif fault == "cannot be loaded":

        class Evil:
            def __reduce__(self):
                return (open, (str(folder / "evil"), "w"))

        torch.save({"bert.pooler": Evil()}, folder / "pytorch_model.bin")
    elif fault == "has a vocabulary of 4101 tokens":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 4101}))
    elif fault == "does not hold a JSON object":
        (folder / "config.json").write_text("[]")
    elif fault == "choose a BERT or ModernBERT model":
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


@pytest.mark.parametrize(
    "fault",
    [
        "vocabulary",
        "tokenizer.json: is not the 4-mer vocabulary",
        "add the vocab.txt that the model was pretrained with",
        "lacks",
        "cannot be loaded",
        "has a vocabulary of 4101 tokens",
        "choose a BERT or ModernBERT model",
        "does not hold a JSON object",
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(prepared: Path, dnabert: Path, tmp_path: Path, fault: str) -> None:
    folder = damaged_copy(dnabert, tmp_path / "model", fault)
    words = [*FLAGS, *NO_UPDATES, "--data", prepared, "--init-from", folder, "--output", tmp_path / "run"]
    printed = run_ranks(1, *words, codes=[2])
    errors = [line for line in printed.splitlines() if "error:" in line]
    assert len(errors) == 1 and fault in errors[0], printed
    assert "Traceback" not in printed
    assert not (folder / "evil").exists()


def test_a_missing_head_is_initialized_and_reported(prepared: Path, dnabert: Path, tmp_path: Path) -> None:
    shutil.copytree(dnabert, tmp_path / "model")
    weights = torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=True)
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    encoder = {name: weight.clone() for name, weight in weights.items() if not name.startswith("cls.")}
    save_file(encoder, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    words = [*FLAGS, *NO_UPDATES, "--data", prepared, "--init-from", tmp_path / "model", "--output", tmp_path / "run"]
    assert "has no masked-language-model head" in run_ranks(1, *words)
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == encoder.keys()


def test_a_flag_that_contradicts_the_folder_is_named(prepared: Path, dnabert: Path, tmp_path: Path) -> None:
    words = [*FLAGS, "--data", prepared, "--init-from", dnabert, "--output", tmp_path / "run"]
    done = run_cli("-m", "dnabert_rm.cli.main", "check", *words, "--model.hidden_size", "128")
    assert done.returncode == 2
    assert f"model.hidden_size: is 128, but {dnabert} has 64; omit this setting" in done.stderr
    done = run_cli("-m", "dnabert_rm.cli.main", "check", *words[:-4], "--init-from", tmp_path, "--output", "run")
    assert done.returncode == 2 and "config.json: no such file" in done.stderr
