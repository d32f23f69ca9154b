"""Every task of `finetune`: plain transformers loads the saved model and gives the written predictions."""

import json

import numpy as np
import pytest
from finetuning import data_of, read, save_model, settings_for, slow_outputs
from scipy import stats
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dnabert_rm.finetune.finetune_model import finetune


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


def slow_cells(loaded, tokenizer, sequence, facts):
    outputs = slow_outputs(loaded, tokenizer, sequence, facts)
    if facts["task"] == "bases":
        return ["".join("." if output is None else facts["labels"][int(output.argmax())] for output in outputs)]
    if facts["task"] == "regression":
        return (outputs.numpy() * facts["target_std"] + facts["target_mean"]).tolist()
    return [
        ";".join(name for name, logit in zip(facts["labels"], outputs, strict=True) if logit > 0),
        *outputs.sigmoid().tolist(),
    ]


@pytest.mark.parametrize(
    ("task", "columns", "options"),
    [
        ("multi-label", ("label",), {}),
        ("multi-label", ("x", "y"), {"long": "window", "max_tokens": 12}),
        ("regression", ("label",), {}),
        ("regression", ("a", "c"), {"max_tokens": 12}),
        ("bases", ("label",), {"max_tokens": 20}),
        ("bases", ("label",), {"long": "window", "max_tokens": 9, "overlapping": False}),
    ],
)
def test_task_from_tables_to_a_model_that_anyone_loads(model, tmp_path, task, columns, options):
    output = tmp_path / "out"
    settings = settings_for(
        model,
        data_of(task, columns, tmp_path),
        output,
        task=task,
        label_columns=columns,
        max_steps=60,
        eval_steps=20,
        learning_rate=1e-2,
        **options,
    )
    scores = finetune(settings)
    facts = json.loads((output / "model" / "finetuning.json").read_text())
    kind = AutoModelForTokenClassification if task == "bases" else AutoModelForSequenceClassification
    loaded = kind.from_pretrained(output / "model").eval()
    problem = {"multi-label": "multi_label_classification", "regression": "regression", "bases": None}[task]
    assert loaded.config.problem_type == problem
    assert [loaded.config.id2label[i] for i in range(len(facts["labels"]))] == facts["labels"]
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    predicted = read(output / "predictions.csv")
    for row, written in zip(read(tmp_path / "test.csv"), predicted, strict=True):
        assert [written[name] for name in ("sequence", *columns)] == [row[name] for name in ("sequence", *columns)]
        cells = [text for name, text in written.items() if name not in ("sequence", *columns)]
        expected = slow_cells(loaded, tokenizer, row["sequence"], facts)
        for cell, value in zip(cells, expected, strict=True):
            assert cell == value if isinstance(value, str) else float(cell) == pytest.approx(value, rel=1e-4, abs=1e-4)
    check_scores(task, columns, scores["metrics"]["test"], predicted)


def check_scores(task, columns, found, predicted):
    """Check that the scores equal scikit-learn's for the written predictions, and are better than random."""
    if task == "bases":
        labels, guesses = ("".join(row[name] for row in predicted) for name in ("label", "prediction"))
        pairs = [(label, guess) for label, guess in zip(labels, guesses, strict=True) if guess != "."]
        assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(*zip(*pairs, strict=True)))
        assert found["accuracy"] == pytest.approx(np.mean([label == guess for label, guess in pairs]))
        assert found["mcc"] > 0.3
    elif task == "regression":
        predictions = ["prediction"] if len(columns) == 1 else [f"prediction_{name}" for name in columns]
        pairs = zip(columns, predictions, strict=True)
        each = [[np.array([float(row[name]) for row in predicted]) for name in pair] for pair in pairs]
        assert found["pearson"] == pytest.approx(np.mean([stats.pearsonr(*one).statistic for one in each]), abs=1e-4)
        assert found["mse"] == pytest.approx(np.mean([metrics.mean_squared_error(*one) for one in each]), rel=1e-3)
        assert found["pearson"] > 0.5
    else:
        names = ["x", "y"]
        labels = [[int(row[n] == "1") if len(columns) > 1 else n in row["label"] for n in names] for row in predicted]
        probabilities = [[float(row[f"p_{n}"]) for n in names] for row in predicted]
        assert found["auroc_macro"] == pytest.approx(metrics.roc_auc_score(labels, probabilities), abs=0.02)
        guesses = [[n in row["prediction"] for n in names] for row in predicted]
        assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, guesses, average="macro"))
        assert found["auroc_macro"] > 0.8
