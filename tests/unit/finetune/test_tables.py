"""Labelled tables: the formats that are read, and the one-line error of each mistake."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert_rm.finetune.tables import BadRowHandler, class_names, count_shared, hold_out, read_labelled
from dnabert_rm.finetune.tasks import TASK_CLASSES
from dnabert_rm.utils.errors import DataError


def write(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sequence,label\nACGT,0\nacgn,1\n"),
        ("a.tsv", "sequence\tlabel\nACGT\t0\nacgn\t1\n"),
        ("tabs.csv", "sequence\tlabel\nACGT\t0\nacgn\t1"),
        ("windows.csv", "sequence,label\r\nACGT,0\r\nacgn,1\r\n"),
        ("bom.csv", b"\xef\xbb\xbfsequence,label\nACGT,0\nacgn,1\n"),
        ("more.csv", 'id,Label,note,"Sequence"\n7,0,"a, b",ACGT\n8,1,,acgn\n'),
        ("spaces.csv", "sequence , label\n ACGT, 0\n\nacgn ,1 \n\n"),
    ],
)
def test_reads_csv_and_tsv_variants(tmp_path, name, content):
    table = read_labelled(write(tmp_path, content, name))
    assert table.sequences == ["ACGT", "acgn"] and table.labels == ["0", "1"]
    assert len(table) == 2 and table.path == tmp_path / name


def test_reads_long_fields_and_line_numbers(tmp_path):
    table = read_labelled(
        write(tmp_path, "sequence,label,note\nA,x,\n\n" + "ACGT" * 50_000 + ',y,"two\nlines"\nC,z,\n')
    )
    assert len(table.sequences[1]) == 200_000 and table.lines == [2, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": is empty"),
        (" \n", ": is empty"),
        ("sequence,label\n", ": has a header but no rows"),
        ("sequence,label\n\n\n", ": has a header but no rows"),
        ("sequence,class\nACGT,1\n", r":1: no column 'label' \(found: 'sequence', 'class'\)"),
        ("seq,label\nACGT,1\n", ":1: no column 'sequence'"),
        ("ACGTACGT,1\nACGT,0\n", ":1: .*put the header sequence,label above it"),
        ("sequence;label\nACGT;1\n", ":1: .*separated by commas or tabs"),
        ("sequence,label,label\nACGT,1,1\n", ":1: has 2 columns named 'label'"),
        ("sequence,label\nACGT,1\n,0\n", ":3: the sequence is empty"),
        ("sequence,label\nACGT,1\nACGT,\n", ":3: the label is missing"),
        ("sequence,label\nACGT,1\nACGT\n", ":3: has 1 columns where the header has 2"),
        ("sequence,label\nACGT,1,2\n", ":2: has 3 columns where the header has 2"),
        ("sequence,label\nACGT,1\n\nACGU,1\n", ":4: 'U' at base 4 is not a nucleotide; write T for U"),
        ("sequence,label\nACGT CGTA,1\n", ":2: ' ' at base 5 is not a nucleotide; remove the spaces; `python"),
        ("sequence,label\nMEEPQSDPSV,1\n", ":2: 'E' at base 2 is not a nucleotide"),
        ("sequence,label\nACG7,1\n", ":2: '7' at base 4"),
        ("sequence,label\nACG ACG,1\n", ":2: ' ' at base 4"),
        ("sequence,label\nAC-G,1\n", ":2: '-' at base 3"),
        ('sequence,label\nACGT,1\n"ACGT"x,1\n', ":3: not a valid row"),
        (b"\x1f\x8b\x08\x00\xff\xfe", ": not a text file"),
    ],
)
def test_errors_name_file_line_and_fault(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        read_labelled(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_labelled(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_labelled(tmp_path)


def test_accepts_iupac_letters(tmp_path):
    assert len(read_labelled(write(tmp_path, "sequence,label\nACGTRYSWKMBDHVNacgtryswkmbdhvn,1\n"))) == 1


def rows(tmp_path, labels, name="t.csv"):
    return read_labelled(write(tmp_path, "sequence,label\n" + "".join(f"ACGT,{label}\n" for label in labels), name))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "0", "9"], ["0", "9", "10"]),
        (["b", "a", "10"], ["10", "a", "b"]),
        (["-1", "+1", "0"], ["-1", "0", "+1"]),
    ],
)
def test_classes_are_sorted(tmp_path, labels, names):
    task = TASK_CLASSES["classes"](("label",)).fitted(rows(tmp_path, labels))
    assert task.labels == tuple(names)
    assert [task.labels[task.target("A", [label])] for label in labels] == labels


def test_refuses_a_single_class_and_unknown_labels(tmp_path):
    with pytest.raises(DataError, match=r"every row has the label 'a'"):
        class_names(["a", "a"], tmp_path)
    train, test = rows(tmp_path, ["a", "b"]), rows(tmp_path, ["a", "c"], "test.csv")
    task = TASK_CLASSES["classes"](("label",)).fitted(train)
    with pytest.raises(DataError, match=r"test.csv:3: the label 'c' is not in the training table \(its labels: a, b\)"):
        BadRowHandler().usable(test, task.target)


def test_reads_the_named_label_columns(tmp_path):
    path = write(tmp_path, "id,Yes,sequence,no\nx,1,ACGT,0.5\ny,2,ACGT,\n")
    table = read_labelled(path, ["yes"])
    assert table.fields == [("1",), ("2",)] and table.columns == ("yes",)
    with pytest.raises(DataError, match=r"t.csv:3: the label no is missing"):
        read_labelled(path, ["yes", "no"])
    with pytest.raises(DataError, match=r"t.csv:1: no column 'maybe' .*--label-columns"):
        read_labelled(path, ["yes", "maybe"])


def test_bad_rows_are_dropped_and_counted(tmp_path):
    path = write(tmp_path, "sequence,label\nACGT,0\nAC-T,0\nACGT\n,1\nACGT,\nacgt,1\nACGT,2\n")
    bad_rows = BadRowHandler(drop=True)
    table = read_labelled(path, bad_rows=bad_rows)
    assert (table.lines, table.labels) == ([2, 7, 8], ["0", "1", "2"])
    assert [text.split(": ")[0] for text in bad_rows.errors[path]] == [f"{path}:{line}" for line in (3, 4, 5, 6)]
    task = TASK_CLASSES["classes"](("label",)).fitted(table.rows([0, 1]))
    assert bad_rows.usable(table, task.target).lines == [2, 7] and bad_rows.count(path) == 5
    with pytest.raises(DataError, match=r"t.csv: no row can be used; .*t.csv:2: '-' at base 2"):
        read_labelled(write(tmp_path, "sequence,label\nA-G,0\n,1\n"), bad_rows=BadRowHandler(drop=True))


@pytest.mark.parametrize(
    ("task", "columns", "row", "message"),
    [
        ("regression", "label", "ACGT,high", ":3: label is 'high', not a number"),
        ("regression", "label", "ACGT,nan", ":3: label is 'nan'; write a finite number"),
        ("multi-label", "a,b", "ACGT,1,yes", ":3: b is 'yes'; with several label columns, write 0 or 1 in each"),
        ("bases", "label", "ACGT,011", ":3: 3 labels for 4 bases"),
    ],
)
def test_refuses_labels_that_a_task_cannot_parse(tmp_path, task, columns, row, message):
    good = {"regression": "1.5", "multi-label": "1,0", "bases": "0011"}[task]
    path = write(tmp_path, f"sequence,{columns}\nACGT,{good}\n{row}\n")
    names = columns.split(",")
    with pytest.raises(DataError, match=message):
        read_labelled(path, names, TASK_CLASSES[task](tuple(names)).check)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(0, 1000), st.integers(2, 12))
def test_held_out_and_remaining_rows_are_all_rows(tmp_path_factory, labels, seed, every):
    table = rows(tmp_path_factory.mktemp("t"), labels)
    remaining, held_out = hold_out(table, every, seed)
    assert sorted(remaining.lines + held_out.lines) == table.lines
    assert remaining.lines == sorted(remaining.lines) and held_out.lines == sorted(held_out.lines)
    assert len(remaining) >= 1 and len(held_out) >= 1
    for label in set(table.labels):
        assert abs(held_out.labels.count(label) - table.labels.count(label) / every) < 1
    assert hold_out(table, every, seed)[1].lines == held_out.lines


def test_another_seed_holds_out_other_rows(tmp_path):
    table = rows(tmp_path, ["a", "b"] * 50)
    assert hold_out(table, 10, 1)[1].lines != hold_out(table, 10, 2)[1].lines


def test_counts_rows_shared_with_train(tmp_path):
    train = read_labelled(write(tmp_path, "sequence,label\nACGT,0\nCCCC,1\n", "train.csv"))
    test = read_labelled(write(tmp_path, "sequence,label\nacgt,1\nGGGG,1\nACGT,0\n", "test.csv"))
    assert count_shared(test, train) == 2


def test_reads_a_table_of_gue(test_data):
    table = read_labelled(test_data / "gue" / "prom" / "prom_core_tata" / "dev.csv")
    assert len(table) == 613 and class_names(table.labels, table.path) == ("0", "1")
