"""Options of `finetune`: what is trained, early stopping, the choice of the checkpoint, and refused options."""

import json

import pytest
import torch
from finetuning import data_of, read, save_model, settings_for, slow_outputs, write_classes, write_table
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.utils.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


def test_class_weights_are_used(model, classes, tmp_path):
    """With few rows of class 1, the plain loss soon predicts 0 for every row; the balanced loss does not."""
    train = read(classes / "train.csv")
    kept = [row for row in train if row["label"] == "0"] + [row for row in train if row["label"] == "1"][:6]
    (tmp_path / "train.csv").write_text("sequence,label\n" + "".join(f"{r['sequence']},{r['label']}\n" for r in kept))
    few = {"train": tmp_path / "train.csv", "max_steps": 6, "learning_rate": 1e-3, "dropout": 0.0}
    found = {
        weights: finetune(settings_for(model, classes, tmp_path / str(weights), class_weights=weights, **few))
        for weights in (None, "balanced")
    }
    ones = {w: [row["prediction"] for row in read(tmp_path / str(w) / "predictions.csv")].count("1") for w in found}
    assert ones[None] == 0 and ones["balanced"] > 0


@pytest.mark.parametrize("task", ["classes", "bases"])
def test_lora_is_saved_as_adapters(model, classes, tmp_path, task):
    data = classes if task == "classes" else data_of("bases", ("label",), tmp_path)
    output = tmp_path / "out"
    scores = finetune(settings_for(model, data, output, task=task, lora=4, max_steps=30, learning_rate=1e-2))
    saved = load_file(output / "model" / "adapter_model.safetensors")
    assert not (output / "model" / "model.safetensors").exists()
    kind = AutoModelForTokenClassification if task == "bases" else AutoModelForSequenceClassification
    base = kind.from_pretrained(model, num_labels=2)
    loaded = PeftModel.from_pretrained(base, output / "model").eval()
    adapters = json.loads((output / "model" / "adapter_config.json").read_text())
    assert (adapters["r"], adapters["base_model_name_or_path"]) == (4, str(model.resolve()))
    assert scores["trained_parameters"] == sum(weight.numel() for weight in saved.values())
    assert {name.split(".")[-2] for name in saved if "lora" in name} == {"lora_A", "lora_B"}
    assert all(weight.abs().sum() > 0 for name, weight in saved.items() if "lora_B" in name), "adapters were trained"
    facts = json.loads((output / "model" / "finetuning.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    for predicted in read(output / "predictions.csv")[:10]:
        outputs = slow_outputs(loaded, tokenizer, predicted["sequence"], facts)
        if task == "bases":
            assert predicted["prediction"] == "".join(facts["labels"][int(output.argmax())] for output in outputs)
        else:
            assert float(predicted["p_1"]) == pytest.approx(outputs.softmax(-1)[1].item(), abs=2e-5)


def test_refuses_adapters_as_a_pretrained_model(model, classes, tmp_path):
    (tmp_path / "hf").mkdir()
    for path in model.iterdir():
        (tmp_path / "hf" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    with pytest.raises(Exception, match="holds only LoRA adapters"):
        finetune(settings_for(tmp_path / "hf", classes, tmp_path / "out"))


def test_a_frozen_encoder_does_not_change(model, classes, tmp_path):
    finetune(settings_for(model, classes, tmp_path / "out", freeze_encoder=True, max_steps=3))
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model" / "model.safetensors")
    encoder = [name for name in after if name.startswith("bert.") and "pooler" not in name]
    assert len(encoder) == 37 and all(torch.equal(before[name], after[name]) for name in encoder)


def test_stops_early(model, classes, tmp_path):
    """Dev has swapped classes, so no evaluation is better than the first."""
    write_table(tmp_path / "dev.csv", ["1", "0"], 40, 5)
    options = {"eval_steps": 4, "max_steps": 60, "early_stopping": 2, "dev": tmp_path / "dev.csv"}
    scores = finetune(settings_for(model, classes, tmp_path / "out", **options))
    assert scores["steps"] == scores["best_step"] + 8 < 60


def test_checkpoint_by_another_metric(model, classes, tmp_path):
    scores = finetune(settings_for(model, classes, tmp_path / "out", best_metric="auroc", max_steps=2))
    assert scores["best_metric"] == "auroc"
    with pytest.raises(ConfigError, match=r"--best-metric r2: .*; choose one of accuracy, f1_macro, mcc, auroc"):
        finetune(settings_for(model, classes, tmp_path / "out2", best_metric="r2"))
    (tmp_path / "dev.csv").write_text("sequence,label\nACGTACGT,0\nAAAAACGT,0\n")
    with pytest.raises(ConfigError, match=r"auroc: undefined on .*dev.csv"):
        finetune(settings_for(model, classes, tmp_path / "o", best_metric="auroc", dev=tmp_path / "dev.csv"))


def test_bad_rows_are_dropped(model, classes, tmp_path, capsys):
    text = (classes / "test.csv").read_text() + "ACGTACGTACGT,2\nACGU,1\n"
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(DataError, match=r"test.csv:33: 'U' at base 4"):
        finetune(settings_for(model, classes, tmp_path / "out", test=tmp_path / "test.csv"))
    scores = finetune(
        settings_for(model, classes, tmp_path / "out", test=tmp_path / "test.csv", bad_rows="drop", max_steps=2)
    )
    assert scores["splits"]["test"]["rows"] == 30 == len(read(tmp_path / "out" / "predictions.csv"))
    assert scores["rows_left_out"] == {"train": 0, "dev": 0, "test": 2}
    assert "warning: 2 rows of" in (printed := capsys.readouterr().err) and "test.csv:33: 'U'" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "words"}, "--task words: must be one of classes, multi-label, regression, bases"),
        ({"label_columns": ("a", "b")}, "--label-columns a,b: --task classes takes one label column"),
        ({"label_columns": ("sequence",)}, "--label-columns sequence"),
        ({"label_columns": ("a", "A"), "task": "regression"}, "--label-columns a,A: list each"),
        ({"lora": 0}, "--lora 0: must be at least 1"),
        ({"lora": 2, "freeze_encoder": True}, "--lora and --freeze-encoder"),
        ({"lora": 2, "from_scratch": True}, "remove --from-scratch"),
        ({"class_weights": "balanced", "task": "regression"}, "--class-weights: --task regression"),
        ({"early_stopping": 0}, "--early-stopping 0"),
        ({"seeds": (1, 1)}, "--seeds: list each seed once"),
        ({"seeds": (2**32,)}, "--seeds 4294967296"),
        ({"long": "pool"}, "--long pool: must be one of middle, window"),
        ({"bad_rows": "mend"}, "--bad-rows mend: must be one of fail, drop"),
    ],
)
def test_settings_of_tasks_are_checked(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        settings_for(tmp_path, tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("regression", "4", r"train.csv: every row has 4 in column 'label'"),
        ("multi-label", ";", r"train.csv: no row has a label in column 'label'"),
        ("bases", "0" * 12, r"train.csv: every row has the label '0'"),
    ],
)
def test_refuses_tables_with_nothing_to_learn(model, tmp_path, task, label, message):
    (tmp_path / "train.csv").write_text(f"sequence,label\nACGTACGTACGT,{label}\nACGTACGTACGT,{label}\n")
    with pytest.raises(DataError, match=message):
        finetune(settings_for(model, tmp_path, tmp_path / "out", task=task))


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_reports_training_that_diverges(model, classes, tmp_path, task):
    with pytest.raises(ConfigError, match=r"--learning-rate 1e\+30: .* lower rate"):
        finetune(settings_for(model, classes, tmp_path / "out", task=task, learning_rate=1e30, max_steps=4))


def test_refuses_tables_of_sequences_shorter_than_a_kmer(model, tmp_path):
    (tmp_path / "train.csv").write_text("sequence,label\nAC,0\nA,1\n")
    table = dict.fromkeys(("train", "dev", "test"), tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv: every sequence is shorter than one 3-mer"):
        finetune(settings_for(model, tmp_path, tmp_path / "out", **table))
