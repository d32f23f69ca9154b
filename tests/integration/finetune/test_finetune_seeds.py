"""Several seeds: finished seeds are kept, and scores are aggregated."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from finetuning import save_model, settings_for, write_table
from scipy import stats

from dnabert_rm.cli import finetune as command
from dnabert_rm.finetune import multiple_seeds as seeds
from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.utils.errors import ConfigError, run_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_model(folder / "hf")
    for seed, (name, count) in enumerate({"train": 64, "dev": 24, "test": 40}.items()):
        write_table(folder / f"{name}.csv", ["0", "1"], count, seed)
    return folder


def run(*words):
    words = [str(word) for word in words]
    return run_command("dnabert-rm finetune", lambda: command.COMMAND.main("dnabert-rm finetune", words))


def test_finished_seeds_are_kept_and_aggregated(folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--model", folder / "hf", "--output", output, "--max-steps", 2, "--learning-rate", 1e-3]
    words += [word for name in ("train", "dev", "test") for word in (f"--{name}", folder / f"{name}.csv")]
    assert run(*words, "--seeds", "7,8") == 0
    times = {seed: (output / f"seed_{seed}" / "scores.json").stat().st_mtime_ns for seed in (7, 8)}
    capsys.readouterr()
    assert run(*words, "--seed", 7, "--seeds", 3) == 0
    printed = capsys.readouterr()
    assert "seed 7: already finished" in printed.err and "seed 9: into" in printed.err
    assert "seeds 7, 8, 9" in printed.out.splitlines()[0]
    assert times == {seed: (output / f"seed_{seed}" / "scores.json").stat().st_mtime_ns for seed in (7, 8)}
    scores = json.loads((output / "scores.json").read_text())
    each = [json.loads((output / f"seed_{seed}" / "scores.json").read_text()) for seed in (7, 8, 9)]
    values = [one["metrics"]["test"]["auroc"] for one in each]
    assert len(set(values)) > 1 and [one["seed"] for one in each] == scores["seeds"] == [7, 8, 9]
    assert scores["metrics_by_seed"]["test"]["auroc"] == values
    assert scores["metrics"]["test"]["auroc"] == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert scores["metrics_interval_95"]["test"]["auroc"] == pytest.approx([low, high])


def test_refuses_a_finished_seed_with_other_settings(folder, tmp_path):
    first = settings_for(folder / "hf", folder, tmp_path / "out", seeds=(1,), max_steps=2)
    assert seeds.finetune_seeds(first)["metrics_interval_95"]["test"]["auroc"] is None
    other = settings_for(folder / "hf", folder, tmp_path / "out", seeds=(1,), max_steps=3)
    with pytest.raises(ConfigError, match=r"seed_1/scores.json: is from a run with different settings \(max_steps\)"):
        seeds.finetune_seeds(other)
    replaced = settings_for(folder / "hf", folder, tmp_path / "out", seeds=(1,), max_steps=3, overwrite=True)
    assert seeds.finetune_seeds(replaced)["settings"]["max_steps"] == 3


@pytest.mark.parametrize("changed", ["model", "train", "dev", "test"])
def test_refuses_a_finished_seed_of_other_content_in_the_same_place(folder, tmp_path, changed):
    """The settings are the same, but a table or the weights were replaced since the seed finished."""
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    first = settings_for(data / "hf", data, tmp_path / "out", seeds=(1,), max_steps=2)
    scores = seeds.finetune_seeds(first)
    assert set(scores["data_sha256"]) == {"train", "dev", "test"} and len(scores["model_sha256"]) == 64
    if changed == "model":
        save_model(data / "hf", initializer_range=0.1)
    else:
        write_table(data / f"{changed}.csv", ["0", "1"], 30, 9)
    name = data / ("hf" if changed == "model" else f"{changed}.csv")
    more = replace(first, seeds=(1, 2))
    with pytest.raises(
        ConfigError,
        match=rf"seed_1/scores.json: the content of --{changed} {name} has changed since this seed finished; choose",
    ) as error:
        seeds.finetune_seeds(more)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "seed_2").exists()
    assert seeds.finetune_seeds(replace(more, overwrite=True))["seeds"] == [1, 2]


def test_refuses_a_finished_seed_without_checksums(folder, tmp_path):
    settings = settings_for(folder / "hf", folder, tmp_path / "out", seeds=(1,), max_steps=2)
    seeds.finetune_seeds(settings)
    path = tmp_path / "out" / "seed_1" / "scores.json"
    scores = json.loads(path.read_text())
    del scores["data_sha256"], scores["model_sha256"]
    path.write_text(json.dumps(scores))
    with pytest.raises(ConfigError, match=r"has no checksums of the model and the tables, .* or pass --overwrite"):
        seeds.finetune_seeds(settings)


def test_a_single_run_and_several_seeds_need_different_folders(folder, tmp_path):
    single = settings_for(folder / "hf", folder, tmp_path / "out", max_steps=2)
    several = settings_for(folder / "hf", folder, tmp_path / "out", seeds=(1, 2), max_steps=2)
    finetune(single)
    with pytest.raises(ConfigError, match="is a file, or contains a model from finetune without --seeds"):
        seeds.finetune_seeds(several)
    seeds.finetune_seeds(replace(several, overwrite=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.json", "seed_1", "seed_2"]
    with pytest.raises(ConfigError, match=r"already contains scores.json"):
        finetune(single)


def test_mean_and_interval_of_undefined_values():
    assert seeds.mean([0.5, None]) is None and seeds.interval([0.5, None]) is None
    assert seeds.interval([0.0, 1.0]) == pytest.approx([0.5 - 12.7062 * 0.5, 0.5 + 12.7062 * 0.5], rel=1e-4)


@pytest.mark.parametrize("text", ["x", "0", "1,x", ""])
def test_refuses_invalid_seeds(text, folder, tmp_path, capsys):
    files = [word for name in ("train", "test") for word in (f"--{name}", folder / f"{name}.csv")]
    assert run("--model", folder / "hf", "--output", tmp_path / "o", *files, "--seeds", text) == 2
    assert f"error: --seeds {text}: must be" in capsys.readouterr().err
