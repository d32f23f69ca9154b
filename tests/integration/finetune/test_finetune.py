"""`finetune` end to end with a small random BERT: training, checkpoints, files."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning import BERT, save_model, settings_for, write_table
from safetensors.torch import load_file
from sklearn.metrics import matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from dnabert_rm.cli import finetune as command
from dnabert_rm.finetune import hf_trainer
from dnabert_rm.finetune import pretrained_encoder as encoder
from dnabert_rm.finetune import token_rows as rows
from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.tasks import TASK_CLASSES
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.utils.errors import ConfigError, run_command

CLASSES = TASK_CLASSES["classes"](("label",), ("0", "1"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motifs")
    for seed, (name, count) in enumerate({"train": 160, "dev": 40, "test": 50}.items()):
        write_table(folder / f"{name}.csv", ["0", "1"], count, seed)
    return folder


def run(*words):
    words = [str(word) for word in words]
    return run_command("dnabert-rm finetune", lambda: command.COMMAND.main("dnabert-rm finetune", words))


def test_command_from_tables_to_a_model_that_anyone_loads(model, data, tmp_path, capfd):
    output = tmp_path / "out"
    tables = ["--train", data / "train.csv", "--dev", data / "dev.csv", "--test", data / "test.csv"]
    small = ["--max-steps", 24, "--eval-steps", 8, "--learning-rate", 3e-3, "--warmup-steps", 2]
    code = run("--model", model, *tables, "--output", output, *small)
    printed = capfd.readouterr()
    assert code == 0, printed.err
    scores = json.loads((output / "scores.json").read_text())
    lines = printed.out.splitlines()
    assert len(lines) == 4 and lines[1].split() == ["split", "rows", "accuracy", "f1_macro", "mcc", "auroc"]
    assert lines[3].split()[:2] == ["test", "50"]
    assert "4 newly initialized tensors" in printed.err and "Traceback" not in printed.err
    assert scores["metrics"]["test"]["mcc"] > 0.8, "base composition is easy to learn"
    assert (scores["steps"], scores["seed"], scores["splits"]["train"]["rows"]) == (24, 42, 160)
    assert sorted(path.name for path in output.iterdir()) == ["model", "predictions.csv", "scores.json", "tensorboard"]
    check_predictions(output, data / "test.csv", scores)


def check_predictions(output, table, scores):
    """Check that the saved model, loaded by plain transformers, predicts the same for one row at a time.

    Rows differ in length, so this fails if padding changes the outputs or if rows are out of order.
    """
    loaded = AutoModelForSequenceClassification.from_pretrained(output / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    with open(table) as labelled, open(output / "predictions.csv") as predicted:
        rows = list(zip(csv.DictReader(labelled), csv.DictReader(predicted), strict=True))
    for row, prediction in rows:
        assert (row["sequence"], row["label"]) == (prediction["sequence"], prediction["label"])
        with torch.no_grad():
            probability = loaded(**tokenizer(row["sequence"], return_tensors="pt")).logits.softmax(-1)[0]
        assert float(prediction["p_1"]) == pytest.approx(probability[1].item(), abs=2e-5)
        assert prediction["prediction"] == loaded.config.id2label[int(probability.argmax())]
    labels, predicted = ([pair[1][column] for pair in rows] for column in ("label", "prediction"))
    assert scores["metrics"]["test"]["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted))


def test_same_settings_give_the_same_scores_and_weights(model, data, tmp_path):
    runs = [finetune(settings_for(model, data, tmp_path / name)) for name in ("a", "b")]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    finetune(settings_for(model, data, tmp_path / "c", seed=43))
    other = load_file(tmp_path / "c" / "model" / "model.safetensors")
    assert not torch.equal(other["classifier.weight"], first["classifier.weight"])


def test_string_classes_and_a_held_out_dev_split(model, tmp_path, capsys):
    classes = ["exon", "intron", "other"]
    write_table(tmp_path / "train.csv", classes, 200, 1)
    write_table(tmp_path / "test.csv", classes, 60, 2)
    scores = finetune(settings_for(model, tmp_path, tmp_path / "out", dev=None, max_steps=30))
    assert scores["classes"] == classes and "auroc" not in scores["metrics"]["test"]
    assert scores["metrics"]["test"]["mcc"] > 0.6
    assert (scores["splits"]["train"]["rows"], scores["splits"]["dev"]["rows"]) == (180, 20)
    assert "20 of 200 rows" in capsys.readouterr().err
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").config
    assert config.id2label == dict(enumerate(classes)) and config.label2id["other"] == 2


def test_checkpoint_is_the_best_on_dev(model, data, tmp_path, capsys):
    """Dev has swapped classes, so its score falls with every step and the last one is the worst."""
    write_table(tmp_path / "dev.csv", ["1", "0"], 40, 5)
    scores = finetune(settings_for(model, data, tmp_path / "out", dev=tmp_path / "dev.csv", eval_steps=6))
    found = re.findall(r"step (\d+)/20 .* dev mcc (-?[\d.]+)", capsys.readouterr().err)
    assert [int(step) for step, _ in found] == [6, 12, 18, 20]
    best_step, best = max(found, key=lambda pair: float(pair[1]))
    assert float(best) > float(found[-1][1]) + 0.5
    assert scores["best_step"] == int(best_step)
    assert scores["metrics"]["dev"]["mcc"] == pytest.approx(float(best), abs=6e-5)


def test_order_of_rows_depends_only_on_the_seed(model, data, tmp_path):
    sequences = [f"ACGT{'A' * number}" for number in range(40)]
    tokenized = rows.token_rows(KmerTokenizer(3), sequences, list(np.arange(40)), 60)

    def first_labels(seed):
        torch.manual_seed(0)
        loaded = encoder.load_model(model, encoder.load_config(model), CLASSES, 0.1, 0)[0]
        settings = settings_for(model, data, tmp_path, seed=seed)
        args = hf_trainer.training_arguments(settings, "mcc", 3e-5)
        trainer = hf_trainer.make_trainer(loaded, CLASSES, tokenized, tokenized, settings, args)
        return next(iter(trainer.get_train_dataloader()))["labels"].tolist()

    assert first_labels(1) == first_labels(1) != first_labels(2)


def test_non_overlapping_tokens(model, data, tmp_path):
    finetune(settings_for(model, data, tmp_path / "out", overlapping=False, max_steps=2))
    saved = KmerTokenizer.from_pretrained(tmp_path / "out" / "model")
    whole = KmerTokenizer(3)("ACGTTTGACAT")["input_ids"][1:-1]
    assert not saved.overlapping and saved("ACGTTTGACAT")["input_ids"][1:-1] == whole[::3]
    tokenizer = encoder.load_tokenizer(model, encoder.load_config(model), overlapping=False)
    tokenized = rows.token_rows(tokenizer, ["ACGTTTGACAT"], [np.array(0)], 40)
    assert tokenized[0].windows[0].tolist() == [2, *whole[::3], 3]


def test_long_sequences_keep_their_middle(model, data, tmp_path, capsys):
    assert (rows.middle(11, 5), rows.middle(11, 4)) == (range(3, 8), range(3, 7))
    assert rows.middle(11, 11) == rows.middle(11, 12) == range(11)
    write_table(tmp_path / "train.csv", ["0", "1"], 40, 0, lengths=(90, 90))
    settings = settings_for(model, data, tmp_path / "out", train=tmp_path / "train.csv", max_steps=2)
    assert finetune(settings)["rows_cut_to_their_middle"] == {"train": 40, "dev": 0, "test": 0}
    assert "40 train rows have more tokens" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the model has 40 positions"):
        finetune(settings_for(model, data, tmp_path / "out2", max_tokens=41))


def test_token_rows_have_at_most_max_tokens():
    targets = [np.array(target) for target in (0, 1, 0)]
    tokenized = rows.token_rows(KmerTokenizer(3), ["ACGTACGT", "AC", "ACGTA"], targets, 6)
    assert tokenized.lengths == [6, 2, 5] and (tokenized.num_long, tokenized.num_empty) == (1, 1)
    assert tokenized[0].windows[0].tolist() == [2, *KmerTokenizer(3)("CGTACG")["input_ids"][1:-1], 3]


def row(tokens, target):
    return rows.TokenizedRow([np.array(tokens)], None, np.array(target))


def test_batches_have_an_attention_mask_only_if_rows_are_padded():
    padded, even = rows.collate([row([2, 7, 3], 1), row([2, 3], 0)]), rows.collate([row([2, 7, 3], 1)])
    assert padded["input_ids"].tolist() == [[2, 7, 3], [2, 3, 0]] and padded["labels"].tolist() == [1, 0]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "attention_mask" not in even


def test_pretrained_and_random_weights(model):
    source = load_file(model / "model.safetensors")

    def load(seed, from_scratch):
        return encoder.load_model(model, encoder.load_config(model), CLASSES, 0.25, seed, from_scratch)

    made, new = load(1, False)
    weights = made.state_dict()
    assert new == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert all(torch.equal(weights[name], source[name]) for name in weights if name not in new)
    assert made.config.hidden_dropout_prob == made.config.attention_probs_dropout_prob == 0.25
    assert {module.p for module in made.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    scratch, repeated, other = (load(seed, True)[0].state_dict() for seed in (1, 1, 2))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(scratch[name], repeated[name]) and not torch.equal(scratch[name], other[name])
    assert not torch.equal(scratch[name], source[name])
    assert {key: value.shape for key, value in scratch.items()} == {key: value.shape for key, value in weights.items()}


def test_from_scratch_is_reported(model, data, tmp_path):
    assert finetune(settings_for(model, data, tmp_path / "out", from_scratch=True, max_steps=2))["weights"] == "random"


def test_shortest_run_shows_its_loss(model, data, tmp_path, capsys):
    finetune(settings_for(model, data, tmp_path / "out", max_steps=1, eval_steps=200))
    assert re.search(r"step 1/1  loss 0\.\d+  dev loss 0\.\d+  dev mcc", capsys.readouterr().err)


def test_a_fine_tuned_model_can_be_fine_tuned_again(model, data, tmp_path):
    finetune(settings_for(model, data, tmp_path / "first", max_steps=2))
    config = encoder.load_config(tmp_path / "first" / "model")
    _, new = encoder.load_model(tmp_path / "first" / "model", config, replace(CLASSES, labels=("a", "b", "c")), 0.1, 0)
    assert new == ["classifier.bias", "classifier.weight"]


def test_modernbert(data, tmp_path):
    config = ModernBertConfig(
        vocab_size=69,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        max_position_embeddings=64,
        attention_dropout=0.0,
        **BERT,
    )
    with encoder.suppress_transformers_output():
        ModernBertForMaskedLM(config).save_pretrained(tmp_path / "hf")
        KmerTokenizer(3).save_pretrained(tmp_path / "hf")
    scores = finetune(settings_for(tmp_path / "hf", data, tmp_path / "out", max_steps=4))
    assert scores["steps"] == 4
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert made.config.attention_dropout == made.config.classifier_dropout == 0.1


def test_warns_of_rows_shared_by_train_and_test(model, data, tmp_path, capsys):
    settings = settings_for(model, data, tmp_path / "out", test=data / "train.csv", max_steps=2)
    assert finetune(settings)["rows_shared_with_train"] == {"dev": 0, "test": 160}
    assert "warning: 160 of 160 test rows" in capsys.readouterr().err


def test_standard_output_has_only_the_scores(model, data, tmp_path, capsys, monkeypatch):
    scores = finetune(settings_for(model, data, tmp_path / "out", max_steps=2))

    def finetune_with_output(settings):
        print("output of some library")
        return scores

    monkeypatch.setattr("dnabert_rm.finetune.finetune_model.finetune", finetune_with_output)
    capsys.readouterr()
    assert run("--model", model, "--train", "a.csv", "--test", "b.csv", "--output", tmp_path / "o") == 0
    printed = capsys.readouterr()
    assert "some library" in printed.err and "some library" not in printed.out and "mcc" in printed.out


def test_help_does_not_import_torch():
    script = (
        "import sys; from dnabert_rm.cli import finetune; finetune.COMMAND.parser('finetune').format_help();"
        "slow = {'torch', 'transformers', 'sklearn', 'deepspeed'} & set(sys.modules); assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
