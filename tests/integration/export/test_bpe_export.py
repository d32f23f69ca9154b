"""A BPE run from FASTA to an export: the same ids in SentencePiece, the shards, stock transformers and our reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, rewrite_manifest, run_ranks

from data_prep.cli import main as data_prep
from dnabert_rm.checkpoint.run_folder import step_folder
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.export import export_model
from dnabert_rm.genome.bpe_model import MODEL_NAME, load_model
from dnabert_rm.tokenizer.bpe_tokenizer import BpeTokenizer
from dnabert_rm.utils.errors import CheckpointError

MODEL = "--model.num_layers 1 --model.hidden_size 32 --model.num_heads 2 --model.intermediate_size 64"
SIZES = "--model.max_positions 66 --global-batch 4 --window 64 --workers 0 --steps 2"
FLAGS = f"--preset tiny {MODEL} {SIZES} --loss token --ds-config zero0 --masking token".split()


@pytest.fixture(scope="module")
def genome() -> str:
    rng = np.random.default_rng(0)
    repeats = "".join(random_bases(rng, int(size)) * 9 for size in rng.integers(1, 7, 300))
    return random_bases(rng, 60_000) + repeats


@pytest.fixture(scope="module")
def data(genome: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "g.fa").write_text(f">a\n{genome}\n")
    fasta, bpe = str(folder / "g.fa"), str(folder / "bpe.model")
    assert data_prep(["train-bpe", fasta, "--vocab-size", "300", "--out", bpe, "--workers", "1"]) == 0
    assert data_prep(["build", fasta, "--tokenizer", bpe, "--out", str(folder / "data"), "--workers", "1"]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run_ranks(1, *FLAGS, "--data", data, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model.export(run, tmp_path_factory.mktemp("exports") / "model").folder


def test_the_checkpoint_and_the_export_have_the_model_of_the_data(data: Path, run: Path, model: Path) -> None:
    content = (data / MODEL_NAME).read_bytes()
    assert (step_folder(run, 2) / MODEL_NAME).read_bytes() == content
    assert (model / MODEL_NAME).read_bytes() == content


def test_ids_equal_those_of_sentencepiece_and_of_the_shards(data: Path, genome: str, model: Path) -> None:
    tokenizer = BpeTokenizer(model)
    for shard in load_manifest(data).shards:
        for _, meta, ids in read_segments(data / shard.name):
            assert tokenizer.token_ids([genome[meta["start"] : meta["end"]].lower()])[0].tolist() == ids.tolist()
    rng = np.random.default_rng(1)
    spm = load_model(data / MODEL_NAME)
    texts = [random_bases(rng, int(size)) * int(times) for size, times in rng.integers(1, 40, (400, 2))]
    assert [ids.tolist() for ids in tokenizer.token_ids(texts)] == [spm.encode(text) for text in texts]


def test_a_range_between_two_tokens_has_the_same_tokens(genome: str, model: Path) -> None:
    """Windows are cut between tokens and encoded alone, so their ids must be those of the whole sequence."""
    tokenizer = BpeTokenizer(model)
    text = genome[-3000:]
    ids, ranges = tokenizer.token_ids([text])[0], tokenizer.token_ranges(text)
    assert ranges[0, 0] == 0 and ranges[-1, 1] == len(text) and (ranges[1:, 0] == ranges[:-1, 1]).all()
    cuts = np.sort(np.random.default_rng(2).integers(0, len(ids), (200, 2)), axis=1)
    parts = [text[ranges[start, 0] : ranges[end, 1]] for start, end in cuts]
    for (start, end), part in zip(cuts, tokenizer.token_ids(parts), strict=True):
        assert part.tolist() == ids[start : end + 1].tolist()


def test_letters_other_than_bases(model: Path) -> None:
    tokenizer = BpeTokenizer(model)
    ids = [row.tolist() for row in tokenizer.token_ids(["ACGTNNRACGT", "acgt", "ACGT ACGT", "ACGT[MASK]ACGT", "", "N"])]
    word = ids[1]
    assert ids == [[*word, 1, *word], word, [*word, *word], [*word, 4, *word], [], [1]]


STOCK = """
import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder, text, ids = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer(text)["input_ids"] == [2, *eval(ids), 3], tokenizer(text)
assert tokenizer.model_max_length == 66 and tokenizer.mask_token_id == 4
batch = tokenizer([text, text[:9]], padding=True, return_tensors="pt")
assert AutoModelForMaskedLM.from_pretrained(folder)(**batch).logits.isfinite().all()
assert "dnabert_rm" not in sys.modules
"""


def test_stock_transformers_loads_the_export_without_this_package(data: Path, model: Path, tmp_path: Path) -> None:
    text = "ACGTTTGACCAGTACACACACACACAGTTTTTTT"
    ids = load_model(data / MODEL_NAME).encode(text)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", STOCK, str(model), text, repr(ids)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_or_other_model_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    for content, message in ((None, "tokenizer.model: cannot be read"), (b"other", "is not the BPE model that made")):
        folder = tmp_path / str(content)
        folder.mkdir()
        for path in data.iterdir():
            if path.name != MODEL_NAME:
                (folder / path.name).symlink_to(path)
        if content:
            (folder / MODEL_NAME).write_bytes(content)
        printed = run_ranks(2, *FLAGS, "--data", folder, "--output", tmp_path / "run", codes=[2, 2])
        assert message in printed and "Traceback" not in printed


def test_an_old_checkpoint_takes_the_model_of_the_data_folder(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    checkpoint = step_folder(tmp_path / "run", 2)
    (checkpoint / MODEL_NAME).unlink()
    rewrite_manifest(checkpoint)
    export_model.export(tmp_path / "run", tmp_path / "one")
    assert (tmp_path / "one" / MODEL_NAME).read_bytes() == (data / MODEL_NAME).read_bytes()
    config = (checkpoint / "config.toml").read_text()
    (checkpoint / "config.toml").write_text(config.replace(str(data), str(tmp_path)))
    rewrite_manifest(checkpoint)
    export_model.export(tmp_path / "run", tmp_path / "two")
    assert "the export has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "two" / "tokenizer.json").exists()


def test_a_tokenizer_with_other_ids_does_not_pass_the_check(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnabert_rm.tokenizer import bpe_tokenizer

    original = bpe_tokenizer.BPE
    monkeypatch.setattr(bpe_tokenizer, "BPE", lambda vocab, merges, **kw: original(vocab, merges[::-1], **kw))
    with pytest.raises(CheckpointError, match=r"token ids of tokenizer\.json differ from those in the training data"):
        export_model.export(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_all_files_of_an_export_have_the_permissions_of_new_files(model: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in model.rglob("*") if path.is_file()} == {0o666 & ~umask}
