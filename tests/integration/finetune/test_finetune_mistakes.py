"""Mistakes that `finetune` reports: models that don't fit, wrong settings and tables, existing results."""

import json

import pytest
from finetuning import save_model, settings_for, write_classes
from safetensors.torch import load_file, save_file

from dnabert_rm.cli.main import run_one
from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.multiple_seeds import finetune_seeds
from dnabert_rm.utils.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


def remove_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != ""}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_tensor, "lacks 1 tensors of the bert encoder, such as bert.encoder.layer.1.output.dense.weight"),
        (change_config(num_hidden_layers=1), "does not use 16 tensors"),
        (change_config(num_hidden_layers=3), "lacks 16 tensors"),
        (change_config(intermediate_size=48), "has the wrong shape for 6 tensors"),
        (change_config(model_type="", architectures=["Unknown"]), "not a model that transformers can load"),
        (change_config(vocab_size=64), "vocab.txt has 69 tokens, but the model has 64 embeddings"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not a model that transformers can load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "not a model that transformers can load"),
        (lambda folder: (folder / "vocab.txt").write_text("[PAD]\nthe\n"), "not a k-mer vocabulary"),
        (lambda folder: [path.unlink() for path in (folder / "vocab.txt", *folder.glob("tokenizer*"))], "no vocab.txt"),
    ],
)
def test_refuses_a_model_that_does_not_fit(tmp_path, data, damage, message):
    folder = save_model(tmp_path / "hf")
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        finetune(settings_for(folder, data, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"batch_size": 0}, "--batch-size"),
        ({"warmup_steps": -1}, "--warmup-steps"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"dropout": 1.0}, "--dropout"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"max_tokens": 2}, "--max-tokens 2"),
        ({"eval_steps": 0}, "--eval-steps"),
        ({"precision": "x"}, "--precision"),
    ],
)
def test_settings_are_checked_when_made(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        settings_for(tmp_path, tmp_path, tmp_path / "out", **option)


def test_all_wrong_settings_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"--epochs 0: .*\n  --dropout 2: "):
        settings_for(tmp_path, tmp_path, tmp_path / "out", epochs=0, dropout=2)


def test_results_are_replaced_only_with_overwrite(model, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    first = settings_for(model, data, tmp_path / "out", max_steps=2)
    finetune(first)
    with pytest.raises(ConfigError, match="--overwrite"):
        finetune(first)
    finetune(settings_for(model, data, tmp_path / "out", max_steps=3, overwrite=True))
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["steps"] == 3
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    with pytest.raises(ConfigError, match="would replace --model"):
        finetune(settings_for(tmp_path / "out" / "model", data, tmp_path / "out", overwrite=True))


@pytest.mark.parametrize("seeds", [None, (1,)])
@pytest.mark.parametrize("place", ["predictions.csv", "model/train.csv", "tensorboard/train.csv", "link"])
def test_inputs_are_never_replaced(model, data, tmp_path, place, seeds):
    output = tmp_path / "out"
    table = output / ("predictions.csv" if place == "link" else place)
    table.parent.mkdir(parents=True)
    table.write_text((data / "train.csv").read_text())
    (output / "scores.json").write_text("{}")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    given = table
    if place == "link":
        given = tmp_path / "train.csv"
        given.symlink_to(table)
    settings = settings_for(model, data, output, train=given, overwrite=True, seeds=seeds)
    with pytest.raises(ConfigError, match=rf"would replace --train {given}; choose another folder"):
        (finetune if seeds is None else finetune_seeds)(settings)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_refuses_labels_that_train_lacks(model, data, tmp_path):
    (tmp_path / "test.csv").write_text("sequence,label\nACGTACGT,0\nACGTACGT,2\n")
    with pytest.raises(DataError, match=r"test\.csv:3: the label '2' is not in"):
        finetune(settings_for(model, data, tmp_path / "out", test=tmp_path / "test.csv"))


def test_a_mistake_is_one_line_and_exit_code_2(model, data, tmp_path, capsys):
    tables = ["--train", tmp_path / "none.csv", "--test", data / "test.csv"]
    words = ["--model", model, *tables, "--output", tmp_path / "o"]
    assert run_one("finetune", "dnabert-rm finetune", [*map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"{tmp_path / 'none.csv'}: no such file" in printed.err
