"""Suites in TOML files: the shipped ones, patterns, and the mistakes that loading reports."""

from pathlib import Path

import pytest
from gue_folders import GUE, make_sets

from dnabert_rm.evaluate.data_sets import find_sets
from dnabert_rm.evaluate.suite import load_suite, suite_names
from dnabert_rm.evaluate.suite_runs import resolve_settings
from dnabert_rm.utils.errors import ConfigError, DataError

# Copied by hand from the benchmark's description: family, names, classes, bases, tokens, epochs, evaluation, warm-up.
TABLE = """
EMP; EMP/H3 EMP/H3K14ac EMP/H3K36me3 EMP/H3K4me1 EMP/H3K4me2 EMP/H3K4me3 EMP/H3K79me3 EMP/H3K9ac EMP/H4 EMP/H4ac; 2; 500; 512; 3; 200; 50
core promoter; prom/prom_core_all prom/prom_core_notata; 2; 70; 80; 4; 400; 50
core promoter; prom/prom_core_tata; 2; 70; 80; 10; 200; 50
promoter 300; prom/prom_300_all prom/prom_300_notata; 2; 300; 310; 4; 400; 50
promoter 300; prom/prom_300_tata; 2; 300; 310; 10; 200; 50
splice; splice/reconstructed; 3; 400; 410; 5; 200; 50
Covid; virus/covid; 9; 1000; 1024; 9; 200; 50
TF mouse; mouse/0 mouse/1 mouse/2 mouse/3 mouse/4; 2; 100; 110; 5; 200; 30
TF human; tf/0 tf/1 tf/2 tf/3 tf/4; 2; 100; 110; 3; 200; 30
"""  # noqa: E501

MEANS = """
DNABERT (3-mer); 49.54; 64.43; 57.74; 84.63; 72.96; 84.14; 62.23
DNABERT (6-mer); 49.10; 64.17; 56.43; 81.70; 71.81; 84.07; 55.50
NT-500M-human; 45.35; 57.14; 45.24; 85.51; 66.54; 79.71; 50.82
NT-2500M-multi; 58.06; 63.33; 67.02; 88.15; 71.63; 89.35; 73.04
DNABERT-2; 55.98; 70.11; 68.00; 84.21; 70.53; 84.99; 71.02
"""


def test_settings_of_all_28_data_sets():
    seen = set()
    for line in TABLE.strip().splitlines():
        family, names, *numbers = line.split("; ")
        for name in names.split():
            gue_set, settings = GUE.find(name).facts, GUE.settings_of(name)
            found = [gue_set.classes, gue_set.bases, gue_set.tokens]
            assert [*found, settings.epochs, settings.eval_steps, settings.warmup_steps] == [int(n) for n in numbers], (
                name
            )
            assert GUE.family_of(name) == family
            assert (settings.learning_rate, settings.batch_size, settings.weight_decay) == (3e-5, 32, 0.01)
            assert settings.max_steps == (1000 if family == "TF mouse" else None)
            assert GUE.metric_of(name) == ("f1_macro" if name == "virus/covid" else "mcc")
            seen.add(name)
    assert seen == set(GUE.names) and len(seen) == 28


def test_published_means_have_the_right_families():
    assert tuple(GUE.families) == ("EMP", "TF human", "TF mouse", "promoter 300", "core promoter", "splice", "Covid")
    lines = [line.split("; ") for line in MEANS.strip().splitlines()]
    expected = {model: dict(zip(GUE.families, map(float, values), strict=True)) for model, *values in lines}
    assert expected == GUE.published and list(expected) == list(GUE.published)


def test_overrides_replace_the_settings_of_gue():
    assert resolve_settings("mouse/3", GUE, {})["max_steps"] == 1000
    assert resolve_settings("mouse/3", GUE, {"epochs": 7}) | {"epochs": 7, "max_steps": None} == resolve_settings(
        "mouse/3", GUE, {"epochs": 7}
    ), "GUE's max_steps would take precedence over --epochs"
    assert resolve_settings("mouse/3", GUE, {"epochs": 7, "max_steps": 9})["max_steps"] == 9
    assert resolve_settings("mine", GUE, {"dropout": 0.0})["dropout"] == 0.0
    assert resolve_settings("mine", GUE, {})["epochs"] == 3


def test_shipped_suites():
    assert suite_names() == ["genomic_benchmarks", "gue", "nucleotide_transformer"]
    benchmarks, transformer = load_suite("genomic_benchmarks"), load_suite("nucleotide_transformer")
    assert len(benchmarks.names) == 9 and {benchmarks.metric_of(name) for name in benchmarks.names} == {"accuracy"}
    assert benchmarks.families == {name: (name,) for name in benchmarks.names}
    assert benchmarks.published["CNN (PyTorch)"]["human_ocr_ensembl"] == 68.0
    assert "drosophila_enhancers_stark" not in benchmarks.published["HyenaDNA"], "not in the table of its source"
    assert len(transformer.names) == 18 and {transformer.metric_of(name) for name in transformer.names} == {"mcc"}
    assert len(transformer.families["histone marks"]) == 10 and not transformer.published


OWN = """
name = "Mine"
[[data_sets]]
names = ["peaks/*", "promoters"]
family = "regulation"
metric = "accuracy"
epochs = 5
max_steps = 70
[[data_sets]]
names = ["expression"]
task = "regression"
metric = "spearman"
learning_rate = 1
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_own_suite(tmp_path):
    suite = load_suite(write(tmp_path, OWN))
    make_sets(tmp_path / "data", a__peaks__x="train dev test", expression="train dev test", peaks="train", zoo="train")
    found = find_sets(tmp_path / "data", suite)
    assert [(s.name, s.known) for s in found] == [
        ("peaks/x", True),
        ("expression", True),
        ("peaks", False),
        ("zoo", False),
    ]
    assert [suite.metric_of(s.name) for s in found] == ["accuracy", "spearman", "mcc", "mcc"]
    assert [suite.family_of(s.name) for s in found] == ["regulation", "expression", None, None]
    assert suite.families == {"expression": ("expression",)}, "nobody knows how many data sets peaks/* has"
    settings = resolve_settings("expression", suite, {})
    assert (settings["task"], settings["learning_rate"]) == ("regression", 1.0)
    settings = resolve_settings("peaks/x", suite, {})
    assert "task" not in settings and (settings["epochs"], settings["max_steps"]) == (5, 70)
    assert resolve_settings("peaks/x", suite, {"epochs": 2})["max_steps"] is None


PUBLISHED = 'source = "x"\n' + OWN + "[published.CNN]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = [", "mine.toml: "),
        ("x = 1" + OWN, "x: unknown key; choose one of name, source, data_sets, published"),
        (OWN.replace('name = "Mine"', "name = 3"), "name: must be text, not 3"),
        (OWN.replace('name = "Mine"', ""), "name: missing; add the name"),
        ('name = "Mine"', "data_sets: must be at least one table"),
        (OWN.replace("epochs", "epoch"), "[[data_sets]] number 1: epoch: unknown key; did you mean 'epochs'?"),
        (OWN.replace("epochs = 5", "epochs = '5'"), "[[data_sets]] number 1: epochs: '5' is not of type int"),
        (OWN.replace("epochs = 5", "epochs = 0"), "[[data_sets]] number 1: epochs: 0: must be at least 1"),
        (OWN.replace("accuracy", "acc"), "[[data_sets]] number 1: metric: acc: must be one of mcc, f1_macro"),
        (OWN.replace("spearman", "mcc"), "number 2: metric: mcc is not a metric of task regression; choose one of r2"),
        (OWN + "classes = 2", "number 2: classes: task regression has no classes"),
        (OWN.replace('names = ["expression"]', ""), "number 2: names: missing"),
        (OWN.replace("expression", "/expression"), "number 2: names: '/expression' is not the end of a folder"),
        (OWN.replace("expression", "peaks/b"), "number 2: names: peaks/b is also matched by peaks/* of number 1"),
        (OWN.replace("expression", "promoters"), "number 1: names: promoters is also matched by promoters of number 2"),
        (OWN + 'family = "regulation"', "number 2: metric: family regulation has accuracy in an earlier table"),
        ("published = 1" + OWN, "published: must be tables like"),
        (PUBLISHED + "regulation = 1.0", "[published.'CNN']: regulation: no family of data sets without wildcards"),
        (PUBLISHED + "expression = 'x'", "[published.'CNN']: expression: 'x' is not a number"),
        (OWN + "[published.CNN]\nexpression = 1.0", "source: missing; name the source of the published scores"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_suite(path)
    lines = str(raised.value).splitlines()
    assert all(line.strip().startswith(f"--suite {path}: ") for line in lines)
    assert any(message in line for line in lines), lines


def test_missing_suites(tmp_path):
    with pytest.raises(ConfigError, match="--suite glue: no such suite; choose one of genomic_benchmarks, gue, "):
        load_suite("glue")
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load_suite(str(tmp_path / "none.toml"))


def test_folder_that_two_patterns_match(tmp_path):
    suite = load_suite(write(tmp_path, 'name = "Mine"\n[[data_sets]]\nnames = ["tf/*", "*/0"]'))
    make_sets(tmp_path / "data", tf__0="train dev test")
    with pytest.raises(DataError, match=r"mine\.toml: .* names: tf/\* and \*/0 both match .*tf/0; change"):
        find_sets(tmp_path / "data", suite)
