"""A model folder from a stranger runs no code, with any command that reads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_commands import words_of, write_inputs
from tiny_models import save_bert
from transformers import BertForMaskedLM, BertForSequenceClassification

from dnabert_rm.cli.main import main


class Bomb:
    """Unpickling this object makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("data"))


def weights_with_code(folder: Path, exploded: Path) -> None:
    """Replace the weights by a pickle, which transformers reads if there is no other file."""
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Bomb(exploded)}, folder / "pytorch_model.bin")


def model_with_code(folder: Path, exploded: Path, **changes: str) -> None:
    """Name classes in the folder's own module, as a model on the Hugging Face Hub may."""
    (folder / "evil.py").write_text(f"open({str(exploded)!r}, 'w')\nclass Evil: pass\n")
    names = ["Config", "Model", "ModelForMaskedLM", "ModelForSequenceClassification", "Tokenizer"]
    auto_map = {f"Auto{name}": "evil.Evil" for name in names} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        content = json.loads(path.read_text()) | {"auto_map": auto_map}
        path.write_text(json.dumps(content | (changes if path.name == "config.json" else {})))


def unknown_model_with_code(folder: Path, exploded: Path) -> None:
    """Make the folder's own module the only description of the model."""
    model_with_code(folder, exploded, model_type="evil")


@pytest.mark.parametrize("command", ["finetune", "predict", "embed", "evaluate bits"])
@pytest.mark.parametrize("attack", [weights_with_code, model_with_code, unknown_model_with_code])
def test_no_command_runs_code_of_a_model_folder(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    attack: Callable[[Path, Path], None],
) -> None:
    kind = BertForSequenceClassification if command == "predict" else BertForMaskedLM
    model = save_bert(tmp_path / "model", kind, problem_type="single_label_classification")
    attack(model, tmp_path / "exploded")
    code = main(words_of(command, model, data, tmp_path / "output.csv"))
    printed = capsys.readouterr()
    assert not (tmp_path / "exploded").exists()
    # A model of a known kind is loaded without its own code; the others are refused.
    assert code == (0 if attack is model_with_code else 2), printed.err
    if code:
        assert printed.err.count("error:") == 1 and str(model) in printed.err, printed.err
        assert "Traceback" not in printed.err
