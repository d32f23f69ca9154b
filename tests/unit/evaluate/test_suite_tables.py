"""The tables of `gue`: means, intervals, families, files and plot."""

import csv
import io
import json
import subprocess
import sys

import pytest
from gue_folders import GUE, write_run
from scipy.stats import t as student

from dnabert_rm.evaluate.suite_plot import score_limits, table_figure
from dnabert_rm.evaluate.suite_results import data_set_rows, difference, family_rows, load_results, published_rows
from dnabert_rm.evaluate.suite_tables import UnfinishedRuns, write_tables
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.statistics import mean_and_half_width


@pytest.fixture
def results(tmp_path):
    """Complete splice, Covid and mouse; one data set of tf; EMP complete, but as stand-ins; a data set not in GUE."""
    output = tmp_path / "out"
    for seed, shift in ((1, 0.0), (2, 0.02), (3, 0.07)):
        for arm, base in (("pretrained", 0.6), ("scratch", 0.5)):
            for number in range(5):
                write_run(output, f"mouse/{number}", arm, seed, base + shift + number / 100)
            write_run(output, "splice/reconstructed", arm, seed, base - shift)
            for name in GUE.names:
                if name.startswith("EMP/"):
                    write_run(output, name, arm, seed, base, stand_in=True)
    write_run(output, "virus/covid", "pretrained", 1, 0.4321)
    write_run(output, "tf/2", "pretrained", 1, -0.05, shared=17)
    write_run(output, "mine", "scratch-non-overlapping", 1, 0.25)
    return output


def test_interval_of_the_mean_is_student_t():
    values = [61.2, 58.0, 66.6, 60.1]
    mean, half = mean_and_half_width(values)
    low, high = student.interval(0.95, 3, loc=mean, scale=(sum((v - mean) ** 2 for v in values) / 3 / 4) ** 0.5)
    assert mean == pytest.approx(sum(values) / 4) and (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_and_half_width([5.0]) == (5.0, None)
    assert mean_and_half_width([5.0, 5.0]) == (5.0, 0.0)


def test_rows_families_and_differences(results):
    rows = data_set_rows(load_results(results, GUE), GUE)
    by_name = {(row.name, row.arm): row for row in rows}
    mouse = by_name["mouse/3", "pretrained"]
    assert mouse.scores == pytest.approx({1: 63.0, 2: 65.0, 3: 70.0}) and mouse.mean == pytest.approx(66.0)
    assert (mouse.train_rows, mouse.test_rows, mouse.seconds) == (1234, 56, 4.0)
    assert by_name["virus/covid", "pretrained"].scores == pytest.approx({1: 43.21})
    assert [row.group for row in rows if row.name in ("EMP/H4", "mine", "tf/2")] == [
        "suite",
        "other",
        "stand-in",
        "stand-in",
    ]
    families = {(row.name, row.arm): row for row in family_rows(rows, GUE)}
    assert {name for name, _ in families} == {"TF mouse", "splice", "Covid"}, (
        "stand-ins and incomplete families have no mean"
    )
    assert families["TF mouse", "scratch"].scores == pytest.approx({1: 52.0, 2: 54.0, 3: 59.0})
    assert ("Covid", "scratch") not in families
    mean, half = difference(mouse, by_name["mouse/3", "scratch"])
    assert mean == pytest.approx(10) and half == pytest.approx(0, abs=1e-9)
    assert difference(mouse, by_name["mine", "scratch-non-overlapping"])[1] is None
    assert {family for _, family, _ in published_rows(list(families.values()), GUE)} == {"TF mouse", "splice", "Covid"}


def test_family_means_use_seeds_common_to_all_data_sets(results):
    (results / "runs/mouse/4/pretrained/seed-2/scores.json").unlink()
    families = {(row.name, row.arm): row for row in family_rows(data_set_rows(load_results(results, GUE), GUE), GUE)}
    assert list(families["TF mouse", "pretrained"].scores) == [1, 3]
    assert list(families["TF mouse", "scratch"].scores) == [1, 2, 3]


def test_table_files(results):
    loaded = load_results(results, GUE)
    write_tables(
        results, GUE, loaded, UnfinishedRuns({"EMP/X": "train.csv missing"}, {"tf/0 pretrained seed 1": "exit code 2"})
    )
    rows = list(csv.DictReader(io.StringIO((results / "table.csv").read_text())))
    published = [row for row in rows if row["row"] == "published"]
    assert len(published) == 3 * len(GUE.published) and {row["source"] for row in published} == {
        "Zhou et al. 2023, arXiv:2306.15006"
    }
    assert {row["trained_on"] for row in rows if row["name"].startswith("EMP")} == {"dev (stand-in)"}
    [shared] = [row for row in rows if row["name"] == "tf/2"]
    assert (shared["test_rows_in_train"], shared["mean"], shared["half_width_95"], shared["seeds"]) == (
        "17",
        "-5.0000",
        "",
        "1",
    )
    [family] = [
        row for row in rows if row["row"] == "family mean" and (row["name"], row["arm"]) == ("splice", "scratch")
    ]
    assert family["scores"] == "1:50.0000 2:48.0000 3:43.0000" and family["test_rows"] == ""

    text = (results / "table.md").read_text()
    gue, families, stand_ins, others, notes = text.split("\n## ")[1:]
    assert (
        gue.startswith("GUE data sets")
        and "EMP/" not in gue
        and "| mouse/3 | TF mouse | MCC × 100 | 66.00 ± 8.96 |" in gue
    )
    assert "| virus/covid | Covid | macro F1 × 100 | 43.21 | – | – | 1 / 0 |" in gue
    assert "| DNABERT (6-mer), published | 56.43 | 84.07 | 55.50 |" in families and "EMP" not in families
    assert "| scratch | 55.00 ± 8.96 | 47.00 ± 8.96 | – |" in families
    assert stand_ins.count("(dev → test stand-in)") == 10 and "published" not in stand_ins
    assert "| mine | MCC × 100 |" in others
    assert "Not run: EMP/X: train.csv missing." in notes and "Failed: tf/0 pretrained seed 1: exit code 2." in notes
    assert "of 28): tf/0, tf/1, tf/3, tf/4, prom/prom_300_all" in notes

    scores = json.loads((results / "scores.json").read_text())
    assert len(scores["runs"]) == len(loaded) == 2 * 3 * 16 + 3
    assert sum(run["stand_in"] for run in scores["runs"]) == 60
    run = next(
        r for r in scores["runs"] if (r["data_set"], r["arm"], r["seed"]) == ("splice/reconstructed", "scratch", 2)
    )
    assert run["metrics"]["test"]["mcc"] == 0.48 and run["main_metric"] == "mcc" and run["settings"] == {"model": "hf"}
    assert scores["not_run"] == {"EMP/X": "train.csv missing"}


def test_changed_settings_are_noted(results):
    path = results / "runs/tf/2/pretrained/seed-1/gue_run.json"
    record = json.loads(path.read_text())
    record["settings"] |= {"epochs": 1, "dropout": 0.0}
    path.write_text(json.dumps(record))
    write_tables(results, GUE, load_results(results, GUE), UnfinishedRuns())
    assert "Settings that differ from GUE's for tf/2: dropout 0.0, epochs 1." in (results / "table.md").read_text()


def test_refuses_scores_without_the_metric(results):
    (results / "runs/mine/scratch-non-overlapping/seed-1/scores.json").write_text('{"metrics": {"test": {}}}')
    with pytest.raises(DataError, match=r"scores\.json of mine has no metrics\.test\.mcc"):
        data_set_rows(load_results(results, GUE), GUE)


def test_plot_shows_every_row_and_cuts_no_label(results):
    rows = data_set_rows(load_results(results, GUE), GUE)
    figure = table_figure(GUE, rows, family_rows(rows, GUE))
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    labels = [label for axes in figure.axes for label in (*axes.get_yticklabels(), *axes.texts, axes.title)]
    for label in labels:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, label.get_text()
    shown = {label.get_text().split("\n")[0] for label in labels}
    assert {"mouse/3", "EMP/H4ac", "mine", "virus/covid (macro F1)", "splice", "66.0 ± 9.0"} <= shown


def test_limits_of_the_plot():
    from dnabert_rm.evaluate.suite_results import TableRow

    rows = [TableRow("tf/0", "pretrained", "suite", "mcc", {1: 50.0, 2: 60.0})]  # an interval of ± 64
    assert score_limits(rows, [80.0]) == pytest.approx((33, 97))
    low, high = score_limits([TableRow("tf/0", "pretrained", "suite", "mcc", {1: 50.0})], [])
    assert (low, high) == pytest.approx((40, 60))


def test_help_and_tables_do_not_import_torch(results):
    script = (
        "import sys, pathlib; from dnabert_rm.cli import gue; gue.COMMAND.parser('gue').format_help();"
        "from dnabert_rm.evaluate import suite_tables, suite_results, run_suite, suite;"
        f"out = pathlib.Path({str(results)!r}); gue_suite = suite.load_suite('gue');"
        "suite_tables.write_tables(out, gue_suite, suite_results.load_results(out, gue_suite),"
        " suite_tables.UnfinishedRuns()); run_suite._plot_table(out, gue_suite);"
        "slow = {'torch', 'transformers', 'sklearn', 'deepspeed'} & set(sys.modules); assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (results / "table.png").read_bytes()[:4] == b"\x89PNG" and (results / "table.csv").is_file()
