"""Options of `finetune`: what is trained, early stopping, the choice of the checkpoint, and refused options."""

import json
import shutil

import numpy as np
import pytest
import torch
from finetuning import (
    LABELS,
    data_of,
    read,
    save_model,
    settings_for,
    slow_outputs,
    write_classes,
    write_labelled,
    write_table,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dnabert_rm.analysis.encoder import load_encoder
from dnabert_rm.cli.main import main
from dnabert_rm.finetune.finetune_model import chosen_metric, default_learning_rate, finetune
from dnabert_rm.finetune.table_splits import read_splits
from dnabert_rm.finetune.tasks import TASK_CLASSES
from dnabert_rm.utils.errors import CheckpointError, ConfigError, DataError


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


@pytest.mark.parametrize("task", ["classes", "bases"])
def test_embeddings_and_attention_of_lora_adapters_are_those_of_the_adapted_encoder(model, tmp_path, task):
    data = write_classes(tmp_path) if task == "classes" else data_of("bases", ("label",), tmp_path)
    output = tmp_path / "out"
    finetune(settings_for(model, data, output, task=task, lora=4, max_steps=10, learning_rate=1e-2))
    adapters = output / "model"
    kind = AutoModelForTokenClassification if task == "bases" else AutoModelForSequenceClassification
    loaded = PeftModel.from_pretrained(kind.from_pretrained(model, num_labels=2), adapters).eval().base_model.model
    tokenizer = AutoTokenizer.from_pretrained(adapters)
    sequence = "ACGTTGCAACGGATTACAGG"
    (tmp_path / "a.fa").write_text(f">a\n{sequence}\n")
    with torch.no_grad():
        states = loaded.bert(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0, 1:-1]
        plain = AutoModel.from_pretrained(model)(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0, 1:-1]
    assert (states.mean(0) - plain.mean(0)).abs().max() > 1e-3, "the adapters change the encoder"
    alone = tmp_path / "alone"  # as peft saves adapters: without a tokenizer or a configuration of the model
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapters / name, alone)
    for folder in (adapters, alone):
        words = [
            "embed",
            "--model",
            folder,
            "--input",
            tmp_path / "a.fa",
            "--output",
            tmp_path / "e.npy",
            "--overwrite",
        ]
        assert main([*map(str, words)]) == 0
        assert np.load(tmp_path / "e.npy")[0] == pytest.approx(states.mean(0).numpy(), abs=1e-5)
        encoder = load_encoder(folder, attention="eager")
        ids = torch.tensor(tokenizer([sequence])["input_ids"])
        with torch.no_grad():
            outputs = encoder.model(ids, output_attentions=True)
        assert outputs.last_hidden_state[0, 1:-1].numpy() == pytest.approx(states.numpy(), abs=1e-5)
        assert len(outputs.attentions) == 2 and (encoder.k, encoder.window) == (3, 40)
    drawn = ["analyze", "attention", adapters, "--fasta", tmp_path / "a.fa", "--output", tmp_path / "figures"]
    assert main([*map(str, drawn), "--window", "12"]) == 0


@pytest.mark.parametrize("damage", ["lacks", "renames"])
def test_refuses_adapters_that_lack_a_tensor(model, classes, tmp_path, capsys, damage):
    finetune(settings_for(model, classes, tmp_path / "out", lora=4, max_steps=2))
    folder = tmp_path / "out" / "model"
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    tensor = weights.pop(name)
    if damage == "renames":
        weights[name.replace(".layer.0.", ".layer.7.")] = tensor
    save_file(weights, folder / "adapter_model.safetensors")
    for command in ("predict", "embed"):
        words = [command, "--model", folder, "--input", classes / "test.csv", "--output", tmp_path / "o.csv"]
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "tensors do not match adapter_config.json, such as base_model.model" in error
    with pytest.raises(CheckpointError, match="tensors do not match"):
        load_encoder(folder)


def test_score_variants_refuses_adapters(model, classes, tmp_path, capsys):
    finetune(settings_for(model, classes, tmp_path / "out", lora=4, max_steps=2))
    (tmp_path / "a.fa").write_text(">a\nACGTTGCAACGGATTACAGG\n")
    (tmp_path / "a.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\na\t2\t.\tC\tG\n")
    words = ["--model", tmp_path / "out" / "model", "--vcf", tmp_path / "a.vcf", "--fasta", tmp_path / "a.fa"]
    capsys.readouterr()
    assert main(["score-variants", *map(str, words), "--output", str(tmp_path / "s.csv")]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "holds only LoRA adapters; pass the model that the adapters were trained on" in error
    )


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


@pytest.mark.parametrize(
    ("task", "columns", "rows", "refused", "accepted"),
    [
        (
            "classes",
            ("label",),
            ["1", "1"],
            {"mcc": "the same for every", "auroc": "undefined"},
            ["accuracy", "f1_macro"],
        ),
        ("bases", ("label",), ["E" * 12, "E" * 12], {"mcc": "the same for every"}, ["accuracy", "f1_macro"]),
        (
            "multi-label",
            ("x", "y"),
            ["0,1", "0,1"],
            {"auroc_macro": "undefined", "mcc_macro": "the same"},
            ["f1_macro"],
        ),
        ("multi-label", ("x", "y"), ["0,1", "1,1"], {}, ["auroc_macro", "mcc_macro", "f1_macro", "f1_micro"]),
        ("multi-label", ("x", "y"), ["0,0", "0,0"], {"f1_macro": "the same", "f1_micro": "the same"}, []),
        ("regression", ("label",), ["4", "4"], {"r2": "undefined", "pearson": "undefined"}, ["mse"]),
        ("regression", ("a", "c"), ["4,1", "4,2"], {"r2": "undefined", "r2_a": "undefined"}, ["r2_c", "mse"]),
    ],
)
def test_a_metric_that_cannot_choose_a_checkpoint_is_refused(tmp_path, capsys, task, columns, rows, refused, accepted):
    data = write_classes(tmp_path) if task == "classes" else data_of(task, columns, tmp_path)
    (tmp_path / "dev.csv").write_text(f"sequence,{','.join(columns)}\n" + "".join(f"ACGTACGTACGT,{r}\n" for r in rows))
    for metric, fault in refused.items():
        settings = settings_for(tmp_path, data, tmp_path / "o", task=task, label_columns=columns, best_metric=metric)
        with pytest.raises(ConfigError, match=rf"--best-metric {metric}: {fault}.* on .*dev.csv, where") as error:
            chosen_metric(settings, read_splits(settings))
        assert "\n" not in str(error.value) and "or a --dev table with different labels" in str(error.value)
    for metric in accepted:
        settings = settings_for(tmp_path, data, tmp_path / "o", task=task, label_columns=columns, best_metric=metric)
        capsys.readouterr()
        assert chosen_metric(settings, read_splits(settings)) == metric
        assert f"dev.csv: all rows have the {'class' if task in ('classes', 'bases') else 'same value of '}" in (
            capsys.readouterr().err
        )


def test_a_dev_table_with_different_labels_gives_no_warning(tmp_path, capsys):
    for task, columns in [("classes", ("label",)), *LABELS]:
        data = write_classes(tmp_path) if task == "classes" else data_of(task, columns, tmp_path)
        settings = settings_for(tmp_path, data, tmp_path / "o", task=task, label_columns=columns)
        assert chosen_metric(settings, read_splits(settings)) == TASK_CLASSES[task].best_metric
    assert capsys.readouterr().err == ""


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


def test_refuses_targets_that_cannot_be_standardized(model, tmp_path):
    """Their standard deviation is too small for a float."""
    rows = "".join(f"ACGTACGTACGT,{i}e-200\n" for i in range(1, 8))
    (tmp_path / "train.csv").write_text("sequence,label\n" + rows)
    with pytest.raises(DataError, match=r"train.csv: column 'label' differs too little between rows; multiply it"):
        finetune(settings_for(model, tmp_path, tmp_path / "out", task="regression"))


@pytest.mark.parametrize("number", [0.1, -7.7e-5])
def test_refuses_a_constant_target_whose_mean_is_rounded(model, tmp_path, number):
    rows = "".join(f"ACGTACGTACGT,{number},{i}\n" for i in range(7))
    (tmp_path / "train.csv").write_text("sequence,a,b\n" + rows)
    with pytest.raises(DataError, match=f"train.csv: every row has {number} in column 'a'"):
        finetune(settings_for(model, tmp_path, tmp_path / "out", task="regression", label_columns=("a", "b")))


@pytest.mark.parametrize("task", ["classes", "regression", "bases"])
def test_reports_training_that_diverges(model, classes, tmp_path, task):
    data = data_of(task, ("label",), tmp_path) if task == "bases" else classes
    with pytest.raises(ConfigError, match=r"--learning-rate 1e\+30: .* lower rate"):
        finetune(settings_for(model, data, tmp_path / "out", task=task, learning_rate=1e30, max_steps=4))


@pytest.mark.parametrize("options", [{}, {"overlapping": False}, {"from_scratch": True}])
def test_a_model_of_non_overlapping_tokens_is_named(classes, tmp_path, capsys, options):
    other = save_model(tmp_path / "other")
    (other / "pretraining.json").write_text('{"config": {"data": {"overlap": false}}}')
    finetune(settings_for(other, classes, tmp_path / "out", max_steps=1, warmup_steps=0, **options))
    warning = "other: was trained on non-overlapping k-mers; pass --non-overlapping"
    assert (warning in capsys.readouterr().err) == (not options)


def test_refuses_tables_of_sequences_shorter_than_a_kmer(model, tmp_path):
    (tmp_path / "train.csv").write_text("sequence,label\nAC,0\nA,1\n")
    table = dict.fromkeys(("train", "dev", "test"), tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv: every sequence is shorter than one 3-mer"):
        finetune(settings_for(model, tmp_path, tmp_path / "out", **table))


def test_the_rate_follows_from_the_width_unless_it_is_given(model, classes, tmp_path, capsys):
    assert [default_learning_rate(width) for width in (2048, 768)] == [3e-5, 3e-5]
    assert [default_learning_rate(width) for width in (512, 256)] == pytest.approx([6.75e-5, 2.7e-4])
    assert [default_learning_rate(width) for width in (128, 16)] == [1e-3, 1e-3]
    for given, said in ((None, "learning rate: 0.001, the default for a model of width 32\n"), (2e-4, "0.0002\n")):
        scores = finetune(
            settings_for(model, classes, tmp_path / str(given), learning_rate=given, max_steps=1, warmup_steps=0)
        )
        assert scores["learning_rate"] == (given or 1e-3)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_a_dev_table_at_chance_gives_a_warning(model, tmp_path, task, capsys):
    """Labels that have nothing to do with the sequences can't be learned; those of composition can."""
    for shuffled in (True, False):
        data = tmp_path / str(shuffled)
        data.mkdir()
        for seed, name in enumerate(("train", "dev", "test")):
            if task == "classes":
                write_table(data / f"{name}.csv", ["0", "1"], 64, seed)
            else:
                write_labelled(data / f"{name}.csv", ("label",), LABELS["regression", ("label",)], 64, seed)
            if shuffled:
                rows = read(data / f"{name}.csv")
                labels = np.random.default_rng(seed).permutation([row["label"] for row in rows])
                lines = (f"{row['sequence']},{label}\n" for row, label in zip(rows, labels, strict=True))
                (data / f"{name}.csv").write_text("sequence,label\n" + "".join(lines))
        finetune(settings_for(model, data, data / "out", task=task, max_steps=60, eval_steps=60, learning_rate=1e-3))
        metric = "mcc" if task == "classes" else "r2"
        assert (f"warning: dev {metric} " in capsys.readouterr().err) == shuffled
