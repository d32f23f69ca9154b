"""What `gue` tells each run, which runs it keeps, and the mistakes that it names before it starts any."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from gue_folders import make_sets
from support import ROOT, clean_environment

from dnabert_rm.cli import finetune as finetune_command
from dnabert_rm.cli import gue as command
from dnabert_rm.cli.main import main
from dnabert_rm.evaluate import suite_runs as runs
from dnabert_rm.evaluate.gue_suite import find_sets
from dnabert_rm.evaluate.suite_runs import Plan, check_kept, make_runs, resolve_settings
from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.utils.errors import CheckpointError, ConfigError, DataError


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
    from dnabert_rm.evaluate.run_suite import _prepare

    sets = find_sets(make_sets(tmp_path / "data", tf__0="train dev test"))
    [run] = make_runs(Plan(model, tmp_path / "out"), sets)
    finish(run)
    [new] = make_runs(Plan(model, tmp_path / "out", overrides={"dropout": 0.0}), sets)
    _prepare(new)
    assert not (run.folder / "scores.json").exists()
    assert json.loads((run.folder / "gue_run.json").read_text())["settings"]["dropout"] == 0.0


def test_what_is_a_failed_run(tmp_path, model):
    from dnabert_rm.evaluate.run_suite import _fault

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


def test_every_setting_may_be_given():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    files = ["--model", "m", "--data", "d", "--output", "o"]
    words = [word for name in command.OVERRIDES for word in ("--" + name.replace("_", "-"), "1")]
    args = parser.parse_args([*files, *words, "--precision", "bf16", "--seeds", "1, 2", "--arms", "scratch,pretrained"])
    assert args.seeds == (1, 2) and args.arms == ("scratch", "pretrained")
    assert set(command.OVERRIDES) | {"precision"} == set(resolve_settings("tf/0", {}))
    assert isinstance(args.output, Path) and runs.WEIGHTS == ("pretrained", "scratch")
