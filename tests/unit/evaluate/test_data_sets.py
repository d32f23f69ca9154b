"""Finding the data sets of a suite in a folder, and choosing some of them."""

import pytest
from gue_folders import GUE, make_sets

from dnabert_rm.evaluate.data_sets import DataSet, choose_sets, find_sets, other_suite_warning, reason_not_to_run
from dnabert_rm.evaluate.suite import load_suite
from dnabert_rm.utils.errors import ConfigError, DataError


@pytest.mark.parametrize("top", ["", "GUE"])
def test_finds_data_sets_in_the_order_of_gue(tmp_path, top):
    make_sets(tmp_path / top, zebra="train dev test", mouse__0="train dev test", EMP__H3="dev test", tf__1="train dev")
    found = find_sets(tmp_path, GUE)
    assert [s.name.removeprefix("GUE/") for s in found] == ["EMP/H3", "tf/1", "mouse/0", "zebra"]
    assert [s.known for s in found] == [True, True, True, False]
    assert [s.missing for s in found] == [["train.csv"], ["test.csv"], [], []]
    assert [reason_not_to_run(s, False) is None for s in found] == [False, False, True, True]
    assert [reason_not_to_run(s, True) is None for s in found] == [True, False, True, True]
    assert "train.csv missing; pass --stand-in" in reason_not_to_run(found[0], False)
    assert reason_not_to_run(found[1], True) == "test.csv missing"


def test_finds_a_family_a_single_data_set_and_links(tmp_path):
    make_sets(tmp_path / "GUE", mouse__0="train dev test", mouse__1="train dev test")
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse", GUE)] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse" / "1", GUE)] == ["mouse/1"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mouse").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "cycle").symlink_to(tmp_path / "GUE")
    (tmp_path / "GUE" / "again").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "one").symlink_to(tmp_path / "GUE" / "mouse" / "1")
    assert [s.name for s in find_sets(tmp_path / "linked", GUE)] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE", GUE)] == ["mouse/0", "mouse/1"]


def test_refuses_folders_without_or_with_duplicate_data_sets(tmp_path):
    with pytest.raises(DataError, match=r"no train\.csv, dev\.csv or test\.csv"):
        find_sets(tmp_path, GUE)
    with pytest.raises(DataError, match="no such folder"):
        find_sets(tmp_path / "none", GUE)
    make_sets(tmp_path, a__mouse__0="train dev test", b__mouse__0="train dev test")
    with pytest.raises(DataError, match="are both mouse/0"):
        find_sets(tmp_path, GUE)


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


def test_warns_about_data_sets_of_another_suite(tmp_path):
    make_sets(tmp_path, human_ocr_ensembl="train dev test", demo_human_or_worm="train dev test", mine="train dev test")
    found = find_sets(tmp_path, GUE)
    assert other_suite_warning(found, GUE) == (
        "warning: demo_human_or_worm, human_ocr_ensembl: data sets of Genomic Benchmarks, not of GUE; "
        "pass --suite genomic_benchmarks for their metrics and settings"
    )
    other = load_suite("genomic_benchmarks")
    assert [s.name for s in find_sets(tmp_path, other)] == ["demo_human_or_worm", "human_ocr_ensembl", "mine"]
    assert other_suite_warning(find_sets(tmp_path, other), other) is None
    assert other_suite_warning(find_sets(tmp_path / "mine", GUE), GUE) is None
    make_sets(tmp_path / "marks", EMP__H3K4me1="train dev test", EMP__H3K36me3="train dev test")
    transformer = load_suite("nucleotide_transformer")
    claimed = find_sets(tmp_path / "marks", transformer)
    assert [s.known for s in claimed] == [True, True], "the suite has sets of the same names"
    assert "data sets of GUE, not of Nucleotide Transformer" in str(other_suite_warning(claimed, transformer))
    make_sets(tmp_path, mouse__0="train dev test")
    assert other_suite_warning(find_sets(tmp_path, GUE), GUE) is None, "a folder with both is not a mistake"
