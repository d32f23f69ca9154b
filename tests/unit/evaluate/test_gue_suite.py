"""The settings of GUE's data sets, and finding data sets in a folder."""

import pytest
from gue_folders import make_sets

from dnabert_rm.evaluate.gue_suite import (
    FAMILIES,
    GUE,
    PUBLISHED,
    DataSet,
    choose_sets,
    find_sets,
    metric_of,
    set_settings,
    why_not,
)
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
            gue_set, settings = GUE[name], set_settings(name)
            found = [gue_set.num_classes, gue_set.num_bases, gue_set.num_tokens]
            assert [*found, settings.epochs, settings.eval_steps, settings.warmup_steps] == [int(n) for n in numbers], (
                name
            )
            assert (gue_set.family, gue_set.name) == (family, name)
            assert (settings.learning_rate, settings.batch_size, settings.weight_decay) == (3e-5, 32, 0.01)
            assert settings.max_steps == (1000 if family == "TF mouse" else None)
            assert metric_of(name) == ("f1_macro" if name == "virus/covid" else "mcc")
            seen.add(name)
    assert seen == set(GUE) and len(seen) == 28


def test_published_means_have_the_right_families():
    assert FAMILIES == ("EMP", "TF human", "TF mouse", "promoter 300", "core promoter", "splice", "Covid")
    lines = [line.split("; ") for line in MEANS.strip().splitlines()]
    assert {model: tuple(map(float, values)) for model, *values in lines} == PUBLISHED


def test_overrides_replace_the_settings_of_gue():
    assert resolve_settings("mouse/3", {})["max_steps"] == 1000
    assert resolve_settings("mouse/3", {"epochs": 7}) | {"epochs": 7, "max_steps": None} == resolve_settings(
        "mouse/3", {"epochs": 7}
    ), "GUE's max_steps would take precedence over --epochs"
    assert resolve_settings("mouse/3", {"epochs": 7, "max_steps": 9})["max_steps"] == 9
    assert resolve_settings("mine", {"dropout": 0.0})["dropout"] == 0.0
    assert resolve_settings("mine", {})["epochs"] == 3


@pytest.mark.parametrize("top", ["", "GUE"])
def test_finds_data_sets_in_the_order_of_gue(tmp_path, top):
    make_sets(tmp_path / top, zebra="train dev test", mouse__0="train dev test", EMP__H3="dev test", tf__1="train dev")
    found = find_sets(tmp_path)
    assert [s.name.removeprefix("GUE/") for s in found] == ["EMP/H3", "tf/1", "mouse/0", "zebra"]
    assert [s.known for s in found] == [True, True, True, False]
    assert [s.missing for s in found] == [["train.csv"], ["test.csv"], [], []]
    assert [why_not(s, False) is None for s in found] == [False, False, True, True]
    assert [why_not(s, True) is None for s in found] == [True, False, True, True]
    assert "train.csv missing; pass --stand-in" in why_not(found[0], False)
    assert why_not(found[1], True) == "test.csv missing"


def test_finds_a_family_a_single_data_set_and_links(tmp_path):
    make_sets(tmp_path / "GUE", mouse__0="train dev test", mouse__1="train dev test")
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse")] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse" / "1")] == ["mouse/1"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mouse").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "cycle").symlink_to(tmp_path / "GUE")
    (tmp_path / "GUE" / "again").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "one").symlink_to(tmp_path / "GUE" / "mouse" / "1")
    assert [s.name for s in find_sets(tmp_path / "linked")] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE")] == ["mouse/0", "mouse/1"]


def test_refuses_folders_without_or_with_duplicate_data_sets(tmp_path):
    with pytest.raises(DataError, match=r"no train\.csv, dev\.csv or test\.csv"):
        find_sets(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_sets(tmp_path / "none")
    make_sets(tmp_path, a__mouse__0="train dev test", b__mouse__0="train dev test")
    with pytest.raises(DataError, match="are both mouse/0"):
        find_sets(tmp_path)


def test_chooses_sets_by_name_family_and_pattern(tmp_path):
    names = ("EMP/H3", "EMP/H3K4me1", "mouse/0", "mouse/1", "mousetrap")
    found = [DataSet(name, tmp_path, ()) for name in names]

    def chosen(*patterns):
        return [s.name for s in choose_sets(found, patterns)]

    assert chosen() == list(names)
    assert chosen("mouse") == ["mouse/0", "mouse/1"]
    assert chosen("mouse/1", "EMP/H3") == ["EMP/H3", "mouse/1"]
    assert chosen("EMP/H3*") == ["EMP/H3", "EMP/H3K4me1"]
    with pytest.raises(ConfigError, match="--sets tf/2: no such data set in --data; choose from EMP/H3, "):
        chosen("mouse", "tf/2")
