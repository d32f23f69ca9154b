"""Every task of `finetune`, and what may be trained: each saved model, loaded by others, gives the predictions."""

import csv
import json

import numpy as np
import pytest
import torch
from finetuning import save_model, settings_for, write_table
from peft import PeftModel
from safetensors.torch import load_file
from scipy import stats
from sklearn import metrics
from support import on_ranks
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from dnabert_rm.downstream.finetune import finetune
from dnabert_rm.downstream.finetuning import rows
from dnabert_rm.downstream.finetuning.settings import TASKS
from dnabert_rm.downstream.finetuning.tasks import TASK_CLASSES
from dnabert_rm.errors import ConfigError, DataError
from dnabert_rm.tokenizer import KmerTokenizer

K = 3


def shares(sequence):
    """Share of A, and of C, in a sequence."""
    return [sequence.count(base) / len(sequence) for base in "AC"]


LABELS = {
    # columns → a row's cells
    ("multi-label", ("label",)): lambda s: [";".join("xy"[i] for i in (0, 1) if shares(s)[i] > 0.25) or ";"],
    ("multi-label", ("x", "y")): lambda s: [str(int(share > 0.25)) for share in shares(s)],
    ("regression", ("label",)): lambda s: [f"{100 * shares(s)[0] - 7:.4f}"],
    ("regression", ("a", "c")): lambda s: [f"{100 * shares(s)[0]:.4f}", f"{shares(s)[1]:.4f}"],
    ("bases", ("label",)): lambda s: ["".join("E" if base in "AC" else "I" for base in s)],
}


def write_labelled(path, columns, cells, count, seed, lengths=(20, 36)):
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sequence", *columns])
        for _ in range(count):
            weights = rng.dirichlet([1, 1, 1, 1])
            sequence = "".join(rng.choice(list("ACGT"), rng.integers(lengths[0], lengths[1] + 1), p=weights))
            writer.writerow([sequence, *cells(sequence)])
    return path


def read(path):
    with open(path) as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    for seed, (name, count) in enumerate({"train": 96, "dev": 32, "test": 30}.items()):
        write_table(folder / f"{name}.csv", ["0", "1"], count, seed)
    return folder


def data_of(task, columns, folder, lengths=(20, 36)):
    for seed, (name, count) in enumerate({"train": 160, "dev": 40, "test": 30}.items()):
        write_labelled(folder / f"{name}.csv", columns, LABELS[task, columns], count, seed, lengths)
    return folder


def slow_windows(num_tokens, room):
    """Starts of windows half of which overlap, the last one at the end, written apart from the project's own."""
    starts = [start for start in range(0, num_tokens, room // 2) if start + room < num_tokens]
    return [*starts, max(0, num_tokens - room)]


def slow_answers(loaded, tokenizer, sequence, facts):
    """Logits of a sequence, (L,), or of each base, (bases, L), from the saved model: one window and base at a time."""
    ids, room = tokenizer(sequence)["input_ids"][1:-1], facts["max_tokens"] - 2
    starts = slow_windows(len(ids), room) if facts["long"] == "window" else [max(0, len(ids) - room) // 2]
    found = [[] for _ in sequence]
    whole = []
    for start in starts:
        window = ids[start : start + room]
        with torch.no_grad():
            logits = loaded(torch.tensor([[2, *window, 3]])).logits[0]
        if facts["task"] != "bases":
            whole.append(logits)
            continue
        step = 1 if facts["overlapping"] else K
        for place in range(len(window)):
            first = (start + place) * step
            is_last = start + place == len(ids) - 1
            for base in range(first, len(sequence) if is_last else first + K):
                found[base].append(logits[1 + place])
    if facts["task"] != "bases":
        return torch.stack(whole).mean(0)
    return [torch.stack(several).mean(0) if several else None for several in found]


def slow_cells(loaded, tokenizer, sequence, facts):
    answers = slow_answers(loaded, tokenizer, sequence, facts)
    if facts["task"] == "bases":
        return ["".join("." if one is None else facts["labels"][int(one.argmax())] for one in answers)]
    if facts["task"] == "regression":
        return (answers.numpy() * facts["target_std"] + facts["target_mean"]).tolist()
    return [
        ";".join(name for name, logit in zip(facts["labels"], answers, strict=True) if logit > 0),
        *answers.sigmoid().tolist(),
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
        model, data_of(task, columns, tmp_path), output, task=task, label_columns=columns, max_steps=60, eval_steps=20,
        learning_rate=1e-2, **options,
    )  # fmt: skip
    scores = finetune(settings)
    facts = json.loads((output / "model" / "finetuning.json").read_text())
    kind = AutoModelForTokenClassification if task == "bases" else AutoModelForSequenceClassification
    loaded = kind.from_pretrained(output / "model").eval()
    problem = {"multi-label": "multi_label_classification", "regression": "regression", "bases": None}[task]
    assert loaded.config.problem_type == problem
    assert [loaded.config.id2label[i] for i in range(len(facts["labels"]))] == facts["labels"]
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    predicted = read(output / "predictions.csv")
    for given, written in zip(read(tmp_path / "test.csv"), predicted, strict=True):
        assert [written[name] for name in ("sequence", *columns)] == [given[name] for name in ("sequence", *columns)]
        cells = [text for name, text in written.items() if name not in ("sequence", *columns)]
        expected = slow_cells(loaded, tokenizer, given["sequence"], facts)
        for cell, value in zip(cells, expected, strict=True):
            assert cell == value if isinstance(value, str) else float(cell) == pytest.approx(value, rel=1e-4, abs=1e-4)
    check_scores(task, columns, scores["metrics"]["test"], predicted)


def check_scores(task, columns, found, predicted):
    """The scores are scikit-learn's of the written predictions, and better than chance."""
    if task == "bases":
        labels, guesses = ("".join(row[name] for row in predicted) for name in ("label", "prediction"))
        pairs = [(label, guess) for label, guess in zip(labels, guesses, strict=True) if guess != "."]
        assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(*zip(*pairs, strict=True)))
        assert found["accuracy"] == pytest.approx(np.mean([label == guess for label, guess in pairs]))
        assert found["mcc"] > 0.3
    elif task == "regression":
        pairs = [(name, name.replace("label", "prediction") if len(columns) == 1 else f"prediction_{name}")
                 for name in columns]  # fmt: skip
        each = [[np.array([float(row[name]) for row in predicted]) for name in pair] for pair in pairs]
        assert found["pearson"] == pytest.approx(np.mean([stats.pearsonr(*one).statistic for one in each]), abs=1e-4)
        assert found["mse"] == pytest.approx(np.mean([metrics.mean_squared_error(*one) for one in each]), rel=1e-3)
        assert found["pearson"] > 0.5
    else:
        names = ["x", "y"]
        labels = [[int(row[n] == "1") if len(columns) > 1 else n in row["label"] for n in names] for row in predicted]
        chances = [[float(row[f"p_{n}"]) for n in names] for row in predicted]
        assert found["auroc_macro"] == pytest.approx(metrics.roc_auc_score(labels, chances), abs=0.02)
        guesses = [[n in row["prediction"] for n in names] for row in predicted]
        assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, guesses, average="macro"))
        assert found["auroc_macro"] > 0.8


def test_every_task_has_its_class():
    assert tuple(TASK_CLASSES) == TASKS


def test_which_tokens_speak_for_which_bases():
    """7 bases at k = 3: 5 overlapping tokens, or 2 others and a base that is in none."""
    pairs = [set(zip(*(a.tolist() for a in rows.speakers(range(5), 5, 7, 3, 1)), strict=True))]
    assert pairs[0] == {(base, token) for token in range(5) for base in range(token, token + 3)}
    bases, tokens = rows.speakers(range(2), 2, 7, 3, 3)
    assert (bases.tolist(), tokens.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1, 1])
    bases, tokens = rows.speakers(range(1, 3), 5, 7, 3, 1)
    assert (bases.tolist(), tokens.tolist()) == ([1, 2, 3, 2, 3, 4], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("name", ["classes", "multi-label", "regression", "bases"])
def test_loss_is_a_sum_over_what_is_not_ignored(name):
    """A row that fills up a batch adds nothing, and the rest is transformers' loss times its number of targets."""
    task = TASK_CLASSES[name](("a", "b"), ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    torch.manual_seed(0)
    shape = {"classes": (3,), "bases": (3, 4)}.get(name, (3, 2))
    logits = torch.randn(3, 4, 2) if name == "bases" else torch.randn(3, 2)
    targets = torch.randint(2, shape) if name in ("classes", "bases") else torch.rand(shape)
    flat = (logits.flatten(0, -2), targets.flatten()) if name in ("classes", "bases") else (logits, targets)
    mean = {"multi-label": torch.nn.BCEWithLogitsLoss(), "regression": torch.nn.MSELoss()}
    expected = mean.get(name, torch.nn.CrossEntropyLoss())(*flat) * targets.numel()
    assert task.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    filled = torch.cat([targets, torch.full_like(targets[:1], -100)])
    assert task.loss(torch.cat([logits, logits[:1]]), filled).item() == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_classes_weigh_alike():
    targets = [np.array(number) for number in [0, 0, 0, 1]]
    task = TASK_CLASSES["classes"](("label",), ("a", "b", "c"))
    weights = task.class_weights(targets)
    assert weights.tolist() == [2 / 3, 2, 1]
    logits = torch.zeros(4, 3)
    loss = task.loss(logits, torch.tensor([0, 0, 0, 1]), torch.from_numpy(weights).float())
    assert loss.item() == pytest.approx(4 * np.log(3))
    several = TASK_CLASSES["multi-label"](("x", "y"), ("x", "y"))
    assert several.class_weights([np.array([1, 0]), np.array([0, 0]), np.array([0, 0])]).tolist() == [2, 3]


def test_class_weights_are_used(model, classes, tmp_path):
    """Of 96 rows with 8 of class 1, the plain loss soon says 0 to everything; the balanced one does not."""
    given = read(classes / "train.csv")
    kept = [row for row in given if row["label"] == "0"] + [row for row in given if row["label"] == "1"][:6]
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
    assert all(weight.abs().sum() > 0 for name, weight in saved.items() if "lora_B" in name), "adapters have learnt"
    facts = json.loads((output / "model" / "finetuning.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    for written in read(output / "predictions.csv")[:10]:
        answers = slow_answers(loaded, tokenizer, written["sequence"], facts)
        if task == "bases":
            assert written["prediction"] == "".join(facts["labels"][int(one.argmax())] for one in answers)
        else:
            assert float(written["p_1"]) == pytest.approx(answers.softmax(-1)[1].item(), abs=2e-5)


def test_adapters_alone_are_no_pretrained_model(model, classes, tmp_path):
    (tmp_path / "hf").mkdir()
    for path in model.iterdir():
        (tmp_path / "hf" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    with pytest.raises(Exception, match="holds LoRA adapters alone"):
        finetune(settings_for(tmp_path / "hf", classes, tmp_path / "out"))


def test_a_frozen_encoder_stays_as_it_is(model, classes, tmp_path):
    finetune(settings_for(model, classes, tmp_path / "out", freeze_encoder=True, max_steps=3))
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model" / "model.safetensors")
    encoder = [name for name in after if name.startswith("bert.") and "pooler" not in name]
    assert len(encoder) == 37 and all(torch.equal(before[name], after[name]) for name in encoder)


def test_stops_early(model, classes, tmp_path):
    """Dev has the classes the other way round: no evaluation is better than the first."""
    write_table(tmp_path / "dev.csv", ["1", "0"], 40, 5)
    options = {"eval_steps": 4, "max_steps": 60, "early_stopping": 2, "dev": tmp_path / "dev.csv"}
    scores = finetune(settings_for(model, classes, tmp_path / "out", **options))
    assert scores["steps"] == scores["best_step"] + 8 < 60


def test_checkpoint_by_another_metric(model, classes, tmp_path):
    scores = finetune(settings_for(model, classes, tmp_path / "out", best_metric="auroc", max_steps=2))
    assert scores["best_metric"] == "auroc"
    with pytest.raises(ConfigError, match="--best-metric r2: --task classes has accuracy, f1_macro, mcc, auroc"):
        finetune(settings_for(model, classes, tmp_path / "out2", best_metric="r2"))
    (tmp_path / "dev.csv").write_text("sequence,label\nACGTACGT,0\nAAAAACGT,0\n")
    with pytest.raises(ConfigError, match=r"auroc: is undefined on .*dev.csv"):
        finetune(settings_for(model, classes, tmp_path / "o", best_metric="auroc", dev=tmp_path / "dev.csv"))


def test_bad_rows_are_left_out(model, classes, tmp_path, capsys):
    text = (classes / "test.csv").read_text() + "ACGTACGTACGT,2\nACGU,1\n"
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(DataError, match=r"test.csv:33: 'U' at base 4"):
        finetune(settings_for(model, classes, tmp_path / "out", test=tmp_path / "test.csv"))
    scores = finetune(
        settings_for(model, classes, tmp_path / "out", test=tmp_path / "test.csv", bad_rows="drop", max_steps=2)
    )
    assert scores["splits"]["test"]["rows"] == 30 == len(read(tmp_path / "out" / "predictions.csv"))
    assert scores["rows_left_out"] == {"train": 0, "dev": 0, "test": 2}
    assert "warning: 2 rows of" in (said := capsys.readouterr().err) and "test.csv:33: 'U'" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "words"}, "--task words: must be one of classes, multi-label, regression, bases"),
        ({"label_columns": ("a", "b")}, "--label-columns a,b: --task classes has one column"),
        ({"label_columns": ("sequence",)}, "--label-columns sequence"),
        ({"label_columns": ("a", "A"), "task": "regression"}, "--label-columns a,A: name each"),
        ({"lora": 0}, "--lora 0: must be 1 or more"),
        ({"lora": 2, "freeze_encoder": True}, "--lora and --freeze-encoder"),
        ({"lora": 2, "from_scratch": True}, "leave --from-scratch out"),
        ({"class_weights": "balanced", "task": "regression"}, "--class-weights: --task regression"),
        ({"early_stopping": 0}, "--early-stopping 0"),
        ({"seeds": (1, 1)}, "--seeds: name each seed once"),
        ({"seeds": (2**32,)}, "--seeds 4294967296"),
        ({"long": "pool"}, "--long pool: must be one of middle, window"),
        ({"bad_rows": "mend"}, "--bad-rows mend: must be one of fail, drop"),
    ],
)
def test_settings_of_tasks_are_checked(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        settings_for(tmp_path, tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("task", "label", "says"),
    [
        ("regression", "4", r"train.csv: every row has 4 in column 'label'"),
        ("multi-label", ";", r"train.csv: no row has a label in column 'label'"),
        ("bases", "0" * 12, r"train.csv: every row has the label '0'"),
    ],
)
def test_tables_that_teach_nothing(model, tmp_path, task, label, says):
    (tmp_path / "train.csv").write_text(f"sequence,label\nACGTACGTACGT,{label}\nACGTACGTACGT,{label}\n")
    with pytest.raises(DataError, match=says):
        finetune(settings_for(model, tmp_path, tmp_path / "out", task=task))


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_training_that_diverges(model, classes, tmp_path, task):
    with pytest.raises(ConfigError, match=r"--learning-rate 1e\+30: .* lower it"):
        finetune(settings_for(model, classes, tmp_path / "out", task=task, learning_rate=1e30, max_steps=4))


def test_sequences_shorter_than_a_kmer(model, tmp_path):
    (tmp_path / "train.csv").write_text("sequence,label\nAC,0\nA,1\n")
    table = dict.fromkeys(("train", "dev", "test"), tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv: every sequence is shorter than one 3-mer"):
        finetune(settings_for(model, tmp_path, tmp_path / "out", **table))


def finetune_on_a_rank(ranks, several):
    return [(scores["metrics"], scores["steps"]) for scores in map(finetune, several)]


def test_two_ranks_are_one(model, classes, tmp_path):
    """Rows of several lengths, epochs that two ranks can't share evenly, windows: the same weights to rounding."""
    (tmp_path / "bases").mkdir()
    data = {"classes": classes, "bases": data_of("bases", ("label",), tmp_path / "bases")}
    common = {"dropout": 0.0, "batch_size": 14, "max_steps": 14, "long": "window", "max_tokens": 16}
    alone, together = (
        [settings_for(model, data[task], tmp_path / name / task, task=task, **common) for task in data]
        for name in ("alone", "together")
    )
    expected = finetune_on_a_rank(None, alone)
    found = on_ranks(2, finetune_on_a_rank, together)
    assert found[0] == found[1]
    for one, two, settings in zip(expected, found[0], together, strict=True):
        assert one[1] == two[1]
        for split, scores in one[0].items():
            assert two[0][split] == pytest.approx(scores, abs=1e-4)
        files = [tmp_path / name / settings.task / "model" / "model.safetensors" for name in ("alone", "together")]
        weights = [load_file(file) for file in files]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])
        assert len(list((settings.output / "tensorboard").iterdir())) == 1, "one rank writes"
        name = "bert.embeddings.LayerNorm.weight"
        assert not torch.allclose(load_file(model / "model.safetensors")[name], weights[0][name], atol=2e-3)


def test_order_of_rows_is_that_of_one_rank():
    from dnabert_rm.downstream.finetuning.training import RowOrder

    for lengths in ([9] * 23, [*range(5, 28)]):
        one, two = (list(RowOrder(lengths, 6, 3, fill_up)) for fill_up in (False, True))
        assert two == [*one, 23] and sorted(one) == list(range(23))


def test_kmer_tokens_of_a_window_are_those_of_the_sequence():
    tokenizer = KmerTokenizer(3)
    made = rows.token_rows(tokenizer, ["ACGTTGCAAGT"], [np.array(1)], 6, long="window")
    ids = tokenizer("ACGTTGCAAGT")["input_ids"][1:-1]
    assert [piece[1:-1].tolist() for piece in made[0].windows] == [ids[start : start + 4] for start in (0, 2, 4, 5)]
    assert made.num_long == 1 and made.lengths == [24]
