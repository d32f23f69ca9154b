"""The settings of each run of `gue`, the runs it keeps, and the mistakes it reports before it starts any."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gue_folders import GUE, make_sets
from support import ROOT, clean_environment

from dnabert_rm.cli import finetune as finetune_command
from dnabert_rm.cli import gue as command
from dnabert_rm.cli.main import main
from dnabert_rm.evaluate.data_sets import find_sets
from dnabert_rm.evaluate.suite import load_suite
from dnabert_rm.evaluate.suite_runs import check_finished, make_runs, resolve_settings
from dnabert_rm.evaluate.suite_settings import OVERRIDES, WEIGHTS, SuiteSettings
from dnabert_rm.utils.errors import CheckpointError, ConfigError, DataError


def suite(model, output, **options):
    return SuiteSettings(model=model, data=model, output=output, **options)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (tmp_path / "hf" / name).write_text(name)
    return tmp_path / "hf"


def test_command_of_a_run_has_the_settings_of_its_record(tmp_path, model):
    sets = find_sets(make_sets(tmp_path / "data", mouse__0="train dev test", EMP__H3="dev test"), GUE)
    overrides = {"learning_rate": 1e-4, "dropout": 0.0, "precision": "bf16", "max_tokens": 64}
    plan = suite(model, tmp_path / "out", seeds=(1, 2), arms=("pretrained", "scratch"), overlapping=False, **overrides)
    runs = make_runs(plan, GUE, sets)
    assert [(run.data_set.name, run.settings.seed, run.arm) for run in runs[:3]] == [
        ("EMP/H3", 1, "pretrained-non-overlapping"),
        ("EMP/H3", 1, "scratch-non-overlapping"),
        ("EMP/H3", 2, "pretrained-non-overlapping"),
    ]
    assert len({run.folder for run in runs}) == len(runs) == 8
    for run in runs:
        words = run.command()
        assert words[:4] == [sys.executable, "-m", "dnabert_rm.cli.main", "finetune"]
        (parsed,) = finetune_command.COMMAND.parse("finetune", words[4:])
        assert parsed.overwrite and parsed.to_json() | {"overwrite": False} == run.settings.to_json()
    stand_in, whole = runs[0], runs[4]
    assert stand_in.settings.train == tmp_path / "data/EMP/H3/dev.csv" and stand_in.settings.dev is None
    assert stand_in.settings.data_set == "EMP/H3 (dev → test stand-in)" and stand_in.record["stand_in"]
    assert whole.settings.dev == tmp_path / "data/mouse/0/dev.csv" and not whole.record["stand_in"]
    assert runs[1].settings.from_scratch and not whole.settings.from_scratch and not whole.settings.overlapping
    assert (whole.settings.max_steps, whole.settings.epochs, whole.settings.learning_rate) == (1000, 5, 1e-4)


def finish(run, **scores):
    """Write the files of a finished run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "gue_run.json").write_text(json.dumps(run.record))
    (run.folder / "scores.json").write_text(json.dumps(scores))


def test_finished_runs_are_kept_only_with_the_same_settings(tmp_path, model):
    sets = find_sets(make_sets(tmp_path / "data", mouse__0="train dev test", tf__0="train dev test"), GUE)
    output = tmp_path / "out"

    def runs(which=sets, **options):
        return make_runs(suite(model, output, seeds=(1, 2), **options), GUE, which)

    assert check_finished(runs(), output, False) == set()
    finish(runs()[0])
    finish(runs()[2])
    assert check_finished(runs(), output, False) == {runs()[0].folder, runs()[2].folder}
    assert check_finished(runs(arms=("scratch",)), output, False), "another arm, the same settings"
    changed = runs(learning_rate=1e-3)
    with pytest.raises(
        ConfigError,
        match=r"mouse/0/pretrained/seed-1: this finished run used learning_rate 3e-05 instead of 0.001 \(and 1",
    ):
        check_finished(changed, output, False)
    assert check_finished(changed, output, True) == set()
    scratch = runs(arms=("scratch",), dropout=0.0)
    with pytest.raises(ConfigError, match=r"dropout 0\.1 instead of 0\.0"):
        check_finished(scratch, output, True)  # the table would show it beside the kept arm with other settings
    (tmp_path / "data/mouse/0/dev.csv").write_text("sequence,label\nACGTA,0\n")
    with pytest.raises(
        ConfigError, match="mouse/0/pretrained/seed-1: this finished run used other CSV files; choose an"
    ):
        check_finished(runs(), output, False)
    assert check_finished(runs(sets[:1]), output, False), "this call does not run mouse/0"
    (model / "model.safetensors").write_text("other")
    with pytest.raises(ConfigError, match="another model"):
        check_finished(runs(sets[:1]), output, False)
    (output / "runs/tf/0/pretrained/seed-1/gue_run.json").write_text("{")
    with pytest.raises(DataError, match=r"gue_run\.json: is not valid JSON; remove .* to repeat the run"):
        check_finished(runs(), output, False)


def test_an_output_folder_holds_one_suite(tmp_path, model):
    other = load_suite("genomic_benchmarks")
    sets = find_sets(make_sets(tmp_path / "data", human_ocr_ensembl="train dev test"), other)
    [run] = make_runs(suite(model, tmp_path / "out"), other, sets)
    finish(run)
    assert check_finished([run], tmp_path / "out", False) == {run.folder}
    gue_sets = find_sets(make_sets(tmp_path / "gue", tf__0="train dev test"), GUE)
    [gue_run] = make_runs(suite(model, tmp_path / "out"), GUE, gue_sets)
    with pytest.raises(ConfigError, match="this finished run used the suite Genomic Benchmarks instead of GUE; choose"):
        check_finished([gue_run], tmp_path / "out", False)
    record = {name: value for name, value in gue_run.record.items() if name != "suite"}
    (run.folder / "gue_run.json").write_text(json.dumps(record))
    assert check_finished([gue_run], tmp_path / "out", False) == {run.folder}, "written before there were other suites"


def test_old_scores_are_removed_before_the_new_record_is_written(tmp_path, model):
    """Otherwise old scores would pass for those of the new settings after a kill between the two."""
    from dnabert_rm.evaluate.run_suite import _prepare

    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"), GUE)
    [run] = make_runs(suite(model, tmp_path / "out"), GUE, sets)
    finish(run)
    [new] = make_runs(suite(model, tmp_path / "out", dropout=0.0), GUE, sets)
    _prepare(new)
    assert not (run.folder / "scores.json").exists()
    assert json.loads((run.folder / "gue_run.json").read_text())["settings"]["dropout"] == 0.0


def test_reasons_of_failed_runs(tmp_path, model):
    from dnabert_rm.evaluate.run_suite import _failure

    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"), GUE)
    [run] = make_runs(suite(model, tmp_path / "out"), GUE, sets)
    finish(run, metrics={"test": {"mcc": 0.5}})
    (run.folder / "log.txt").write_text("Traceback\n  ...\nMemoryError\n\n")
    assert _failure(run, GUE, 0) is None
    assert _failure(run, GUE, 1) == f"exit code 1, log {run.folder}/log.txt: MemoryError"
    assert _failure(run, GUE, -9) == f"killed by SIGKILL, log {run.folder}/log.txt: MemoryError"
    finish(run, metrics={"test": {"r2": 0.5}})
    assert "scores.json of tf/0 has no metrics.test.mcc" in _failure(run, GUE, 0)
    assert _failure(run, GUE, 0).startswith("no scores.json"), "renamed, so that the run does not count as finished"


def test_launch_script_passes_its_flags_on(tmp_path, model):
    data = make_sets(tmp_path / "data", tf__0="train dev test")
    script = ["bash", "launch_scripts/finetune_gue.sh"]
    words = [str(model), str(data), str(tmp_path / "out"), "--dry-run", "--seeds", "7"]
    options = {"cwd": ROOT, "env": clean_environment(), "capture_output": True, "text": True, "check": False}
    call = subprocess.run(script + words, **options)
    assert call.returncode == 0 and call.stdout.startswith("to do     tf/0 pretrained seed 7:"), call.stderr
    call = subprocess.run(script, **options)
    assert call.returncode == 2 and call.stderr.startswith("usage: bash launch_scripts/finetune_gue.sh RUN_OR_HFDIR")


def test_mistakes_in_suite_settings(tmp_path, model):
    for options, message in (
        ({"seeds": (1, 1)}, "--seeds 1,1"),
        ({"seeds": ()}, "--seeds"),
        ({"arms": ("pretrained", "random")}, "--arms random: must be one of pretrained, scratch"),
    ):
        with pytest.raises(ConfigError, match=message):
            suite(model, tmp_path, **options)
    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"), GUE)
    with pytest.raises(ConfigError, match="--batch-size 0"):
        make_runs(suite(model, tmp_path / "out", batch_size=0), GUE, sets)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        make_runs(suite(tmp_path, tmp_path / "out"), GUE, sets)


def test_refuses_a_model_or_data_among_the_runs_that_it_replaces(tmp_path, model):
    sets = find_sets(make_sets(tmp_path / "out" / "runs" / "data", tf__0="train dev test"), GUE)
    (tmp_path / "link").symlink_to(tmp_path / "out" / "runs" / "tf")
    shutil.copytree(model, tmp_path / "out" / "runs" / "tf" / "model")
    for given in (tmp_path / "out" / "runs" / "tf" / "model", tmp_path / "link" / "model"):
        with pytest.raises(ConfigError, match=rf"--output .*out: the runs would replace --model {given}; choose"):
            make_runs(suite(given, tmp_path / "out"), GUE, sets)
    plan = SuiteSettings(model=model, data=tmp_path / "out" / "runs" / "data", output=tmp_path / "out")
    with pytest.raises(ConfigError, match="the runs would replace --data"):
        make_runs(plan, GUE, sets)


def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, model, capsys):
    data = make_sets(tmp_path / "data", EMP__H3="dev test", tf__0="train")
    words = ["gue", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    for more, message in (
        ([], "none of these data sets can be run"),
        (["--sets", "tf/9"], "--sets tf/9"),
        (["--jobs", "0"], "--jobs 0"),
        (["--stand-in", "--epochs", "0"], "--epochs 0"),
    ):
        assert main(words + more) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
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


def test_every_setting_may_be_given():
    files = ["--model", "m", "--data", "d", "--output", "o"]
    words = [word for name in OVERRIDES if name != "precision" for word in ("--" + name.replace("_", "-"), "1")]
    (parsed,) = command.COMMAND.parse(
        "gue", [*files, *words, "--precision", "bf16", "--seeds", "1, 2", "--arms", "scratch,pretrained"]
    )
    assert parsed.seeds == (1, 2) and parsed.arms == ("scratch", "pretrained")
    assert set(parsed.overrides) == set(OVERRIDES) == set(resolve_settings("tf/0", GUE, {}))
    assert isinstance(parsed.output, Path) and WEIGHTS == ("pretrained", "scratch")


def test_a_model_of_non_overlapping_tokens_is_named(tmp_path, model, capsys):
    data = make_sets(tmp_path / "data", EMP__H3="dev test")
    (model / "pretraining.json").write_text('{"config": {"data": {"overlap": false}}}')
    words = ["gue", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    for more, warned in (([], True), (["--non-overlapping"], False), (["--arms", "scratch"], False)):
        assert main([*words, "--stand-in", "--dry-run", *more]) == 0
        assert ("was trained on non-overlapping k-mers; pass --non" in capsys.readouterr().err) == warned
