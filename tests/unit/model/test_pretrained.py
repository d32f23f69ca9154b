"""The vocabulary of an --init-from folder is compared with the data's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnabert_rm.genome import kmer
from dnabert_rm.model.pretrained import check_model_folder, check_vocabulary, model_fields
from dnabert_rm.tokenizer.vocabulary_files import write_tokenizer_files
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import sha256_of_file


def model_folder(path: Path, vocab_size: int) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return path


@pytest.mark.parametrize("kept", [("vocab.txt",), ("tokenizer.json",), ("vocab.txt", "tokenizer.json")])
def test_a_folder_with_either_file_is_accepted(tmp_path: Path, kept: tuple[str, ...]) -> None:
    folder = model_folder(tmp_path / "model", kmer.vocab_size(3))
    for name in write_tokenizer_files(folder, 3, True):
        if Path(name).name not in kept:
            Path(name).unlink()
    check_vocabulary(folder, 3, kmer.vocab_size(3))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_each_file_is_compared(tmp_path: Path, name: str) -> None:
    """The other file has the order of the data."""
    folder = model_folder(tmp_path / "model", kmer.vocab_size(3))
    write_tokenizer_files(folder, 3, True)
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("AAT", "x").replace("AAC", "AAT").replace("x", "AAC"))
    with pytest.raises(CheckpointError, match=f"{name}: is not the 3-mer vocabulary of the data"):
        check_vocabulary(folder, 3, kmer.vocab_size(3))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", kmer.vocab_size(3))
    with pytest.raises(CheckpointError, match=r"has neither vocab.txt nor tokenizer.json.*add the vocab.txt"):
        check_vocabulary(folder, 3, kmer.vocab_size(3))


def test_a_bpe_model_is_compared_by_its_hash(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", 69)
    with pytest.raises(CheckpointError, match=r"has no tokenizer file.*add the .model file"):
        check_vocabulary(folder, None, 69, "a" * 64)
    (folder / "spiece.model").write_bytes(b"pieces")
    own = sha256_of_file(folder / "spiece.model")
    check_vocabulary(folder, None, 69, own)
    with pytest.raises(CheckpointError, match=r"spiece.model: is not the BPE tokenizer of the data"):
        check_vocabulary(folder, None, 69, "a" * 64)
    # An export records the hash, which counts first.
    (folder / "pretraining.json").write_text(json.dumps({"tokenizer": {"kind": "bpe", "model_sha256": "a" * 64}}))
    check_vocabulary(folder, None, 69, "a" * 64)
    with pytest.raises(CheckpointError, match=r"pretraining.json: is not the BPE tokenizer of the data"):
        check_vocabulary(folder, None, 69, own)


def test_a_kmer_model_is_refused_for_bpe_data(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", kmer.vocab_size(3))
    write_tokenizer_files(folder, 3, True)
    with pytest.raises(CheckpointError, match=r"vocab.txt: is not the BPE tokenizer of the data"):
        check_vocabulary(folder, None, kmer.vocab_size(3), "a" * 64)


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("positions", "period"),
    [
        ({"full_attention": {"rope_type": "linear", "factor": 0.477464829275686}}, 3.0),
        ({"full_attention": {"rope_type": "linear", "factor": 2}}, 12.566370614),
        ({"full_attention": {"rope_type": "default", "rope_theta": 160000}}, 0.0),
        ({"full_attention": {"rope_type": "linear"}}, 0.0),
        ({"full_attention": None}, 0.0),
        ([], 0.0),
        (None, 0.0),
    ],
)
def test_the_period_of_rotary_positions_is_read(tmp_path: Path, positions: object, period: float) -> None:
    content = {"model_type": "modernbert", "rope_parameters": positions, **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert model_fields(tmp_path)["rope_period"] == period


def test_a_missing_folder_may_be_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose owner is no folder here. A mistyped name in an existing folder gets no such advice."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"hf download zhihan1996/DNA_bert_6 --local-dir FOLDER`$"):
        check_model_folder(Path("zhihan1996/DNA_bert_6"))
    (tmp_path / "models").mkdir()
    for missing in (Path("models/frist"), Path("frist"), tmp_path / "none" / "model"):
        with pytest.raises(CheckpointError, match=r"no such folder; pass a folder that `dnabert-rm export` wrote$"):
            check_model_folder(missing)
