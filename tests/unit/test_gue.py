"""`gue` without a single training run: its table of settings, what it finds, starts, keeps, averages and writes."""

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from scipy.stats import t as student
from support import ROOT, clean_environment

from dnabert_rm.cli import finetune as finetune_command
from dnabert_rm.cli import gue as command
from dnabert_rm.cli.main import main
from dnabert_rm.downstream import gue_jobs, gue_runs
from dnabert_rm.downstream.gue import duration
from dnabert_rm.downstream.gue_markdown import Remarks
from dnabert_rm.downstream.gue_plot import score_limits, table_figure
from dnabert_rm.downstream.gue_results import (
    data_set_rows,
    difference,
    family_rows,
    load_results,
    mean_interval,
    published_rows,
)
from dnabert_rm.downstream.gue_runs import Plan, check_kept, make_runs, resolve_settings
from dnabert_rm.downstream.gue_sets import DataSet, choose_sets, find_sets, why_not
from dnabert_rm.downstream.gue_settings import FAMILIES, GUE, PUBLISHED, metric_of, settings_of
from dnabert_rm.downstream.gue_tables import write_tables
from dnabert_rm.downstream.settings import FinetuneSettings
from dnabert_rm.errors import CheckpointError, ConfigError, DataError

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
            gue_set, told = GUE[name], settings_of(name)
            found = [gue_set.num_classes, gue_set.num_bases, gue_set.num_tokens]
            assert [*found, told.epochs, told.eval_steps, told.warmup_steps] == [int(n) for n in numbers], name
            assert (gue_set.family, gue_set.name) == (family, name)
            assert (told.learning_rate, told.batch_size, told.weight_decay) == (3e-5, 32, 0.01)
            assert told.max_steps == (1000 if family == "TF mouse" else None)
            assert metric_of(name) == ("f1_macro" if name == "virus/covid" else "mcc")
            seen.add(name)
    assert seen == set(GUE) and len(seen) == 28


def test_published_means_stand_under_their_families():
    assert FAMILIES == ("EMP", "TF human", "TF mouse", "promoter 300", "core promoter", "splice", "Covid")
    lines = [line.split("; ") for line in MEANS.strip().splitlines()]
    assert {model: tuple(map(float, values)) for model, *values in lines} == PUBLISHED


def test_settings_on_the_command_line_go_over_the_table():
    assert resolve_settings("mouse/3", {})["max_steps"] == 1000
    assert resolve_settings("mouse/3", {"epochs": 7}) | {"epochs": 7, "max_steps": None} == resolve_settings(
        "mouse/3", {"epochs": 7}
    ), "the table's max_steps would overrule --epochs"
    assert resolve_settings("mouse/3", {"epochs": 7, "max_steps": 9})["max_steps"] == 9
    assert resolve_settings("mine", {"dropout": 0.0})["dropout"] == 0.0
    assert resolve_settings("mine", {})["epochs"] == 3


# ---- finding


def make_sets(root, **splits):
    for name, which in splits.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for split in which.split():
            (folder / f"{split}.csv").write_text(f"sequence,label\n{'ACGT' * 3},0\n{'TTGA' * 3},1\n")
    return root


@pytest.mark.parametrize("top", ["", "GUE"])
def test_finds_data_sets_in_the_order_of_gue(tmp_path, top):
    make_sets(tmp_path / top, zebra="train dev test", mouse__0="train dev test", EMP__H3="dev test", tf__1="train dev")
    found = find_sets(tmp_path)
    assert [s.name.removeprefix("GUE/") for s in found] == ["EMP/H3", "tf/1", "mouse/0", "zebra"]
    assert [s.known for s in found] == [True, True, True, False]
    assert [s.missing for s in found] == [["train.csv"], ["test.csv"], [], []]
    assert [why_not(s, False) is None for s in found] == [False, False, True, True]
    assert [why_not(s, True) is None for s in found] == [True, False, True, True]
    assert "train.csv missing; --stand-in" in why_not(found[0], False)
    assert why_not(found[1], True) == "test.csv missing"


def test_folders_of_a_family_or_of_one_set_and_links(tmp_path):
    make_sets(tmp_path / "GUE", mouse__0="train dev test", mouse__1="train dev test")
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse")] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE" / "mouse" / "1")] == ["mouse/1"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mouse").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "round").symlink_to(tmp_path / "GUE")
    (tmp_path / "GUE" / "again").symlink_to(tmp_path / "GUE" / "mouse")
    (tmp_path / "GUE" / "one").symlink_to(tmp_path / "GUE" / "mouse" / "1")
    assert [s.name for s in find_sets(tmp_path / "linked")] == ["mouse/0", "mouse/1"]
    assert [s.name for s in find_sets(tmp_path / "GUE")] == ["mouse/0", "mouse/1"]


def test_folders_that_can_not_be_meant(tmp_path):
    with pytest.raises(DataError, match=r"no train\.csv, dev\.csv or test\.csv"):
        find_sets(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_sets(tmp_path / "none")
    make_sets(tmp_path, a__mouse__0="train dev test", b__mouse__0="train dev test")
    with pytest.raises(DataError, match="are both mouse/0"):
        find_sets(tmp_path)


def test_choosing_sets(tmp_path):
    names = ("EMP/H3", "EMP/H3K4me1", "mouse/0", "mouse/1", "mousetrap")
    found = [DataSet(name, tmp_path, ()) for name in names]

    def chosen(*patterns):
        return [s.name for s in choose_sets(found, patterns)]

    assert chosen() == list(names)
    assert chosen("mouse") == ["mouse/0", "mouse/1"]
    assert chosen("mouse/1", "EMP/H3") == ["EMP/H3", "mouse/1"]
    assert chosen("EMP/H3*") == ["EMP/H3", "EMP/H3K4me1"]
    with pytest.raises(ConfigError, match="--sets tf/2: no such data set in --data, which has EMP/H3, "):
        chosen("mouse", "tf/2")


# ---- runs


@pytest.fixture
def model(tmp_path):
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (tmp_path / "hf" / name).write_text(name)
    return tmp_path / "hf"


def test_a_run_tells_finetune_what_its_record_says(tmp_path, model):
    sets = find_sets(make_sets(tmp_path / "data", mouse__0="train dev test", EMP__H3="dev test"))
    overrides = {"learning_rate": 1e-4, "dropout": 0.0, "precision": "bf16", "max_tokens": 64}
    plan = Plan(model, tmp_path / "out", (1, 2), ("pretrained", "scratch"), False, overrides)
    runs = make_runs(plan, sets)
    assert [(run.data_set.name, run.settings.seed, run.arm) for run in runs[:3]] == [
        ("EMP/H3", 1, "pretrained-non-overlapping"), ("EMP/H3", 1, "scratch-non-overlapping"),
        ("EMP/H3", 2, "pretrained-non-overlapping"),
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == len(runs) == 8
    parser = argparse.ArgumentParser()
    finetune_command.add_arguments(parser)
    names = FinetuneSettings.__dataclass_fields__
    for run in runs:
        words = run.command()
        assert words[:4] == [sys.executable, "-m", "dnabert_rm.cli.main", "finetune"]
        args = vars(parser.parse_args(words[4:]))
        told = FinetuneSettings(**{name: value for name, value in args.items() if name in names and value is not None})
        assert told.overwrite and told.to_json() | {"overwrite": False} == run.settings.to_json()
    stand_in, whole = runs[0], runs[4]
    assert stand_in.settings.train == tmp_path / "data/EMP/H3/dev.csv" and stand_in.settings.dev is None
    assert stand_in.settings.data_set == "EMP/H3 (dev → test stand-in)" and stand_in.record["stand_in"]
    assert whole.settings.dev == tmp_path / "data/mouse/0/dev.csv" and not whole.record["stand_in"]
    assert runs[1].settings.from_scratch and not whole.settings.from_scratch and not whole.settings.overlapping
    assert (whole.settings.max_steps, whole.settings.epochs, whole.settings.learning_rate) == (1000, 5, 1e-4)


def finish(run, **scores):
    """Leave in a run's folder what `finetune` would."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "gue_run.json").write_text(json.dumps(run.record))
    (run.folder / "scores.json").write_text(json.dumps(scores))


def test_finished_runs_are_kept_only_where_they_were_told_the_same(tmp_path, model):
    sets = find_sets(make_sets(tmp_path / "data", mouse__0="train dev test", tf__0="train dev test"))
    output = tmp_path / "out"

    def runs(which=sets, **options):
        return make_runs(Plan(model, output, (1, 2), **options), which)

    assert check_kept(runs(), output, False) == set()
    finish(runs()[0])
    finish(runs()[2])
    assert check_kept(runs(), output, False) == {runs()[0].folder, runs()[2].folder}
    assert check_kept(runs(arms=("scratch",)), output, False), "another arm, the same settings"
    changed = runs(overrides={"learning_rate": 1e-3})
    with pytest.raises(
        ConfigError, match=r"mouse/0/pretrained/seed-1: finished with learning_rate 3e-05, not 0.001 \(and 1"
    ):
        check_kept(changed, output, False)
    assert check_kept(changed, output, True) == set()
    scratch = runs(arms=("scratch",), overrides={"dropout": 0.0})
    with pytest.raises(ConfigError, match=r"dropout 0\.1, not 0\.0"):
        check_kept(scratch, output, True)  # the kept arm would stand beside it, told otherwise
    (tmp_path / "data/mouse/0/dev.csv").write_text("sequence,label\nACGTA,0\n")
    with pytest.raises(ConfigError, match="mouse/0/pretrained/seed-1: finished with other tables; name an"):
        check_kept(runs(), output, False)
    assert check_kept(runs(sets[:1]), output, False), "this call is not about mouse/0"
    (model / "model.safetensors").write_text("other")
    with pytest.raises(ConfigError, match="another model"):
        check_kept(runs(sets[:1]), output, False)
    (output / "runs/tf/0/pretrained/seed-1/gue_run.json").write_text("{")
    with pytest.raises(DataError, match=r"gue_run\.json: can't be read \(not JSON\); remove"):
        check_kept(runs(), output, False)


def test_scores_of_an_overwritten_run_are_gone_before_its_record_is_new(tmp_path, model):
    """Else a kill between the two would let old scores pass for those of the new settings."""
    from dnabert_rm.downstream.gue import _prepare

    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"))
    [run] = make_runs(Plan(model, tmp_path / "out"), sets)
    finish(run)
    [new] = make_runs(Plan(model, tmp_path / "out", overrides={"dropout": 0.0}), sets)
    _prepare(new)
    assert not (run.folder / "scores.json").exists()
    assert json.loads((run.folder / "gue_run.json").read_text())["settings"]["dropout"] == 0.0


def test_what_is_a_failed_run(tmp_path, model):
    from dnabert_rm.downstream.gue import _fault

    [run] = make_runs(Plan(model, tmp_path / "out"), find_sets(make_sets(tmp_path / "data", tf__0="train dev test")))
    finish(run, metrics={"test": {"mcc": 0.5}})
    (run.folder / "log.txt").write_text("Traceback\n  ...\nMemoryError\n\n")
    assert _fault(run, 0) is None
    assert _fault(run, 1) == f"exit code 1, log {run.folder}/log.txt: MemoryError"
    assert _fault(run, -9) == f"killed by SIGKILL, log {run.folder}/log.txt: MemoryError"
    finish(run, metrics={"test": {"r2": 0.5}})
    assert "scores.json of tf/0 has no metrics.test.mcc" in _fault(run, 0)
    assert _fault(run, 0).startswith("no scores.json"), "put aside, so that it is not taken for finished"


def test_launch_script_hands_its_flags_on(tmp_path, model):
    data = make_sets(tmp_path / "data", tf__0="train dev test")
    script = ["bash", "launch_scripts/finetune_gue.sh"]
    words = [str(model), str(data), str(tmp_path / "out"), "--dry-run", "--seeds", "7"]
    options = {"cwd": ROOT, "env": clean_environment(), "capture_output": True, "text": True, "check": False}
    call = subprocess.run(script + words, **options)
    assert call.returncode == 0 and call.stdout.startswith("to do     tf/0 pretrained seed 7:"), call.stderr
    call = subprocess.run(script, **options)
    assert call.returncode == 2 and call.stderr.startswith("usage: bash launch_scripts/finetune_gue.sh RUN_OR_HFDIR")


def test_mistakes_in_a_plan(tmp_path, model):
    for options, says in (
        ({"seeds": (1, 1)}, "--seeds 1,1"), ({"seeds": ()}, "--seeds"),
        ({"arms": ("pretrained", "random")}, "--arms random: there are pretrained and scratch"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            Plan(model, tmp_path, **options)
    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"))
    with pytest.raises(ConfigError, match="--batch-size 0"):
        make_runs(Plan(model, tmp_path / "out", overrides={"batch_size": 0}), sets)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        make_runs(Plan(tmp_path, tmp_path / "out"), sets)


def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, model, capsys):
    data = make_sets(tmp_path / "data", EMP__H3="dev test", tf__0="train")
    words = ["gue", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    for more, says in (
        ([], "none of these data sets can be run"), (["--sets", "tf/9"], "--sets tf/9"), (["--jobs", "0"], "--jobs 0"),
        (["--stand-in", "--epochs", "0"], "--epochs 0"),
    ):  # fmt: skip
        assert main(words + more) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert main([*words, "--stand-in", "--dry-run", "--seeds", "3,4"]) == 0
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [
        "to do     EMP/H3 (dev → test stand-in) pretrained seed 3",
        "to do     EMP/H3 (dev → test stand-in) pretrained seed 4",
        "not run   tf/0",
    ]
    assert "warning: tf/0: not run: dev.csv and test.csv missing" in printed.err
    assert "26 of GUE's 28 data sets are not in --data" in printed.err
    assert not (tmp_path / "out").exists()


# ---- processes


def python_job(tmp_path, name, script):
    return gue_jobs.Job([sys.executable, "-c", script], tmp_path / f"{name}.txt")


def test_jobs_share_slots_and_fail_alone(tmp_path):
    script = "import os, sys; print(os.environ['PLACE']); sys.exit({})"
    jobs = [python_job(tmp_path, number, script.format(3 * (number == 1))) for number in range(4)]
    jobs.append(python_job(tmp_path, 4, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    ended = list(gue_jobs.run_jobs(jobs, [{"PLACE": "a"}, {"PLACE": "b"}]))
    assert {end.number: end.code for end in ended} == {0: 0, 1: 3, 2: 0, 3: 0, 4: -9}
    assert {gue_jobs.last_line(job.log) for job in jobs[:2]} == {"a", "b"}
    assert gue_jobs.last_line(jobs[4].log) == "(the log is empty)"


def test_jobs_run_side_by_side_and_are_prepared_when_they_start(tmp_path):
    """Each of two waits for the other's file, so one after the other they would never end."""
    prepared = []

    def jobs():
        for number in range(3):
            prepared.append(number)
            wait = f"""
import pathlib, time
pathlib.Path({str(tmp_path)!r}, 'here{number}').touch()
while {number} < 2 and not pathlib.Path({str(tmp_path)!r}, 'here{1 - number}').exists(): time.sleep(0.01)
"""
            yield python_job(tmp_path, number, wait)

    running = gue_jobs.run_jobs(jobs(), [{}, {}])
    first = next(running)
    assert prepared == [0, 1] and first.code == 0
    assert len(list(running)) == 2 and prepared == [0, 1, 2]


def test_no_job_stays_when_the_loop_is_left(tmp_path):
    jobs = [python_job(tmp_path, 0, ""), python_job(tmp_path, 1, "import time; time.sleep(600)")]
    running = gue_jobs.run_jobs(jobs, [{}, {}])
    next(running)
    [child] = psutil.Process().children()
    begun = time.monotonic()
    running.close()
    assert not child.is_running() and time.monotonic() - begun < gue_jobs._SECONDS_TO_END, "killed, not asked to end"


@pytest.mark.skipif(sys.platform != "linux", reason="the system kills children with their parent on Linux alone")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_die_with_their_parent(tmp_path, number):
    script = f"""
import pathlib, sys
from dnabert_rm.downstream import gue, gue_jobs
job = gue_jobs.Job([sys.executable, "-c", "import time; time.sleep(600)"], pathlib.Path({str(tmp_path)!r}, "log.txt"))
with gue._stop_on_signals():
    list(gue_jobs.run_jobs([job], [{{}}]))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    while not children:
        time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=30)
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert ("StoppedError: stopped by SIGTERM" in errors) == (number == signal.SIGTERM)


def test_places_for_jobs(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab")
    assert gue_jobs.visible_gpus() == ["3", "GPU-ab"]
    places = gue_jobs.slot_variables(3, gue_jobs.visible_gpus())
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["3", "GPU-ab", "3"]
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert gue_jobs.visible_gpus() == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert gue_jobs.slot_variables(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert gue_jobs.slot_variables(1, []) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert gue_jobs.slot_variables(3, []) == [{}] * 3


# ---- tables


def write_run(output, name, arm, seed, value, stand_in=False, shared=0):
    """A finished run whose metric is `value`; the others are no number that a table may show."""
    folder = output / "runs" / name / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    record = {"data_set": name, "arm": arm, "seed": seed, "stand_in": stand_in, "model_sha256": "ab" * 32}
    metrics = {"accuracy": 7.0, "f1_macro": 8.0, "mcc": 9.0} | {metric_of(name): value}
    scores = {
        "data_set": name, "seed": seed, "metrics": {"dev": {"mcc": 6.0}, "test": metrics},
        "splits": {"train": {"rows": 1234}, "test": {"rows": 56}}, "settings": {"model": "hf"},
        "rows_shared_with_train": {"dev": 0, "test": shared}, "rows_cut_to_their_middle": {"test": 0},
        "train_seconds": 2.0 * seed,
    }  # fmt: skip
    (folder / "gue_run.json").write_text(json.dumps(record | {"settings": resolve_settings(name, {})}))
    (folder / "scores.json").write_text(json.dumps(scores))


@pytest.fixture
def results(tmp_path):
    """Complete splice, Covid and mouse; of tf one data set; EMP complete, but as stand-ins; one folder of one's own."""
    output = tmp_path / "out"
    for seed, shift in ((1, 0.0), (2, 0.02), (3, 0.07)):
        for arm, base in (("pretrained", 0.6), ("scratch", 0.5)):
            for number in range(5):
                write_run(output, f"mouse/{number}", arm, seed, base + shift + number / 100)
            write_run(output, "splice/reconstructed", arm, seed, base - shift)
            for name in GUE:
                if name.startswith("EMP/"):
                    write_run(output, name, arm, seed, base, stand_in=True)
    write_run(output, "virus/covid", "pretrained", 1, 0.4321)
    write_run(output, "tf/2", "pretrained", 1, -0.05, shared=17)
    write_run(output, "mine", "scratch-non-overlapping", 1, 0.25)
    return output


def test_mean_and_interval_are_students():
    values = [61.2, 58.0, 66.6, 60.1]
    mean, half = mean_interval(values)
    low, high = student.interval(
        0.95, 3, loc=mean, scale=1.6 * 0 + (sum((v - mean) ** 2 for v in values) / 3 / 4) ** 0.5
    )
    assert mean == pytest.approx(sum(values) / 4) and (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_interval([5.0]) == (5.0, None)
    assert mean_interval([5.0, 5.0]) == (5.0, 0.0)


def test_rows_families_and_differences(results):
    rows = data_set_rows(load_results(results))
    by_name = {(row.name, row.arm): row for row in rows}
    mouse = by_name["mouse/3", "pretrained"]
    assert mouse.scores == pytest.approx({1: 63.0, 2: 65.0, 3: 70.0}) and mouse.mean == pytest.approx(66.0)
    assert (mouse.train_rows, mouse.test_rows, mouse.seconds) == (1234, 56, 4.0)
    assert by_name["virus/covid", "pretrained"].scores == pytest.approx({1: 43.21})
    assert [row.group for row in rows if row.name in ("EMP/H4", "mine", "tf/2")] == [
        "GUE",
        "other",
        "stand-in",
        "stand-in",
    ]
    families = {(row.name, row.arm): row for row in family_rows(rows)}
    assert {name for name, _ in families} == {"TF mouse", "splice", "Covid"}, "stand-ins and parts are no family"
    assert families["TF mouse", "scratch"].scores == pytest.approx({1: 52.0, 2: 54.0, 3: 59.0})
    assert ("Covid", "scratch") not in families
    mean, half = difference(mouse, by_name["mouse/3", "scratch"])
    assert mean == pytest.approx(10) and half == pytest.approx(0, abs=1e-9)
    assert difference(mouse, by_name["mine", "scratch-non-overlapping"])[1] is None
    assert {family for _, family, _ in published_rows(list(families.values()))} == {"TF mouse", "splice", "Covid"}


def test_a_family_counts_the_seeds_that_all_its_sets_have(results):
    (results / "runs/mouse/4/pretrained/seed-2/scores.json").unlink()
    families = {(row.name, row.arm): row for row in family_rows(data_set_rows(load_results(results)))}
    assert list(families["TF mouse", "pretrained"].scores) == [1, 3]
    assert list(families["TF mouse", "scratch"].scores) == [1, 2, 3]


def test_files_of_the_table(results):
    loaded = load_results(results)
    write_tables(results, loaded, Remarks({"EMP/X": "train.csv missing"}, {"tf/0 pretrained seed 1": "exit code 2"}))
    rows = list(csv.DictReader(io.StringIO((results / "table.csv").read_text())))
    published = [row for row in rows if row["row"] == "published"]
    assert len(published) == 3 * len(PUBLISHED) and {row["source"] for row in published} == {
        "Zhou et al. 2023, arXiv:2306.15006"
    }
    assert {row["trained_on"] for row in rows if row["name"].startswith("EMP")} == {"dev (stand-in)"}
    [shared] = [row for row in rows if row["name"] == "tf/2"]
    assert (shared["test_rows_in_train"], shared["mean"], shared["half_width_95"], shared["seeds"]) == (
        "17", "-5.0000", "", "1",
    )  # fmt: skip
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
    assert "Without a result, of GUE's 28: tf/0, tf/1, tf/3, tf/4, prom/prom_300_all" in notes

    scores = json.loads((results / "scores.json").read_text())
    assert len(scores["runs"]) == len(loaded) == 2 * 3 * 16 + 3
    assert sum(run["stand_in"] for run in scores["runs"]) == 60
    run = next(
        r for r in scores["runs"] if (r["data_set"], r["arm"], r["seed"]) == ("splice/reconstructed", "scratch", 2)
    )
    assert run["metrics"]["test"]["mcc"] == 0.48 and run["main_metric"] == "mcc" and run["settings"] == {"model": "hf"}
    assert scores["not_run"] == {"EMP/X": "train.csv missing"}


def test_changed_settings_are_told(results):
    path = results / "runs/tf/2/pretrained/seed-1/gue_run.json"
    record = json.loads(path.read_text())
    record["settings"] |= {"epochs": 1, "dropout": 0.0}
    path.write_text(json.dumps(record))
    write_tables(results, load_results(results), Remarks())
    assert "Settings other than the table's for tf/2: dropout 0.0, epochs 1." in (results / "table.md").read_text()


def test_scores_without_the_metric_are_named(results):
    (results / "runs/mine/scratch-non-overlapping/seed-1/scores.json").write_text('{"metrics": {"test": {}}}')
    with pytest.raises(DataError, match=r"scores\.json of mine has no metrics\.test\.mcc"):
        data_set_rows(load_results(results))


def test_picture_shows_every_row_and_cuts_no_label(results):
    rows = data_set_rows(load_results(results))
    figure = table_figure(rows, family_rows(rows))
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    labels = [label for axes in figure.axes for label in (*axes.get_yticklabels(), *axes.texts, axes.title)]
    for label in labels:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, label.get_text()
    shown = {label.get_text().split("\n")[0] for label in labels}
    assert {"mouse/3", "EMP/H4ac", "mine", "virus/covid (macro F1)", "splice", "66.0 ± 9.0"} <= shown


def test_limits_of_the_picture():
    from dnabert_rm.downstream.gue_results import Row

    rows = [Row("tf/0", "pretrained", "GUE", "mcc", {1: 50.0, 2: 60.0})]  # an interval of ± 64
    assert score_limits(rows, [80.0]) == pytest.approx((33, 97))
    low, high = score_limits([Row("tf/0", "pretrained", "GUE", "mcc", {1: 50.0})], [])
    assert (low, high) == pytest.approx((40, 60))


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 61, 3599, 7261)] == [
        "0 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 1 min",
    ]  # fmt: skip


def test_neither_help_nor_tables_wait_for_torch(results):
    script = (
        "import argparse, sys, pathlib; from dnabert_rm.cli import gue; parser = argparse.ArgumentParser();"
        "gue.add_arguments(parser); parser.format_help();"
        "from dnabert_rm.downstream import gue, gue_tables, gue_markdown, gue_results;"
        f"out = pathlib.Path({str(results)!r}); gue_tables.write_tables(out, gue_results.load_results(out),"
        " gue_markdown.Remarks()); gue._draw(out);"
        "slow = {'torch', 'transformers', 'sklearn', 'deepspeed'} & set(sys.modules); assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (results / "table.png").read_bytes()[:4] == b"\x89PNG" and (results / "table.csv").is_file()


def test_every_setting_may_be_given():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    files = ["--model", "m", "--data", "d", "--output", "o"]
    words = [word for name in command.OVERRIDES for word in ("--" + name.replace("_", "-"), "1")]
    args = parser.parse_args([*files, *words, "--precision", "bf16", "--seeds", "1, 2", "--arms", "scratch,pretrained"])
    assert args.seeds == (1, 2) and args.arms == ("scratch", "pretrained")
    assert set(command.OVERRIDES) | {"precision"} == set(resolve_settings("tf/0", {}))
    assert isinstance(args.output, Path) and gue_runs.WEIGHTS == ("pretrained", "scratch")
