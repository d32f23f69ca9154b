"""The stride of a model's tokens, from the records of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnabert_rm.finetune.trained_tokens import check_trained_overlapping, is_trained_overlapping, stride_warning
from dnabert_rm.utils.errors import CheckpointError

FINETUNED, PRETRAINED, TOKENIZER = "finetuning.json", "pretraining.json", "tokenizer_config.json"


def record(folder: Path, name: str, overlapping: bool) -> Path:
    """Write one of the three records to a folder."""
    folder.mkdir(exist_ok=True)
    content = {"config": {"data": {"overlap": overlapping}}} if name == PRETRAINED else {"overlapping": overlapping}
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("overlapping", [True, False])
def test_the_last_training_counts(tmp_path: Path, overlapping: bool) -> None:
    assert is_trained_overlapping(tmp_path)
    for name in (TOKENIZER, PRETRAINED, FINETUNED):  # each is stronger than those before it
        assert is_trained_overlapping(record(tmp_path, name, overlapping)) == overlapping
        record(tmp_path, name, not overlapping)


def test_adapters_are_stronger_than_their_base(tmp_path: Path) -> None:
    adapters, base = tmp_path / "adapters", record(tmp_path / "base", PRETRAINED, False)
    adapters.mkdir()
    assert not is_trained_overlapping(adapters, base)
    assert is_trained_overlapping(record(adapters, FINETUNED, True), base)


def test_a_model_of_other_tokens_is_named(tmp_path: Path) -> None:
    model = record(tmp_path / "model", PRETRAINED, False)
    assert "was trained on non-overlapping k-mers; pass --non-overlapping" in stride_warning(True, model)
    assert stride_warning(False, model) == ""
    with pytest.raises(CheckpointError, match="model: was trained on non-overlapping k-mers, but x needs"):
        check_trained_overlapping("x", model)
    record(model, PRETRAINED, True)
    assert stride_warning(True, model) == ""
    check_trained_overlapping("x", model)
