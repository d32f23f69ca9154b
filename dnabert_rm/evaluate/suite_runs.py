"""Fine-tuning runs of a benchmark suite, and checks of finished runs.

There is one run per data set, seed and arm. An arm is `pretrained` or `scratch`, with overlapping or non-overlapping
k-mers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.evaluate.data_sets import SPLITS, STAND_IN, DataSet
from dnabert_rm.evaluate.suite import Suite
from dnabert_rm.evaluate.suite_settings import SuiteSettings
from dnabert_rm.finetune.finetune_settings import SCORES_FILE, FinetuneSettings, flag
from dnabert_rm.finetune.fingerprints import hash_model, hash_tables
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import read_json

RUNS_FOLDER = "runs"
RECORD_FILE = "gue_run.json"
"""File beside a run's scores.json with suite, data set, arm, seed, settings, and SHA-256 of the model and CSV files."""
LOG_FILE = "log.txt"
FIRST_SUITE = "GUE"
"""Suite of runs whose `RECORD_FILE` names none, from versions that had no other suite."""


@dataclass(frozen=True)
class Run:
    """Settings of one `dnabert-rm finetune` process."""

    data_set: DataSet
    arm: str
    settings: FinetuneSettings
    record: dict[str, Any]
    """Content of `RECORD_FILE`."""

    @property
    def folder(self) -> Path:
        """Output folder of the run."""
        return self.settings.output

    @property
    def title(self) -> str:
        """Name of the run in messages, e.g. "mouse/0 scratch seed 1"."""
        stand_in = f" ({STAND_IN})" if self.record["stand_in"] else ""
        return f"{self.data_set.name}{stand_in} {self.arm} seed {self.settings.seed}"

    def command(self) -> list[str]:
        """Return the command line of the process as a list of arguments."""
        settings = self.settings
        words = [sys.executable, "-m", "dnabert_rm.cli.main", "finetune", "--overwrite"]
        options = {name: getattr(settings, name) for name in ("model", "train", "dev", "test", "output", "data_set")}
        options |= self.record["settings"] | {"seed": settings.seed}
        for name, value in options.items():
            if value is not None:
                words += [flag(name), str(value)]
        return words + ["--from-scratch"] * settings.from_scratch + ["--non-overlapping"] * (not settings.overlapping)


def arm_name(weights: str, overlapping: bool) -> str:
    """Return `weights` ("pretrained" or "scratch"), with the suffix "-non-overlapping" if `overlapping` is false."""
    return weights if overlapping else f"{weights}-non-overlapping"


def resolve_settings(data_set: str, suite: Suite, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fine-tuning settings of a data set.

    `overrides` take precedence over the suite's settings, and the suite's settings over the defaults of
    `FinetuneSettings`. If `overrides` has `epochs` but not `max_steps`, the suite's `max_steps` is removed, because it
    would override `epochs`. `task` is only there if it is not `classes`.
    """
    suite_settings = asdict(suite.settings_of(data_set))
    if "epochs" in overrides and "max_steps" not in overrides:
        suite_settings["max_steps"] = None
    defaults: dict[str, Any] = {
        name: getattr(FinetuneSettings, name) for name in ("dropout", "precision", "max_tokens")
    }
    if (task := suite.task_of(data_set)) and task != FinetuneSettings.task:
        defaults["task"] = task
    return defaults | suite_settings | dict(overrides)


def make_runs(settings: SuiteSettings, suite: Suite, sets: Sequence[DataSet]) -> list[Run]:
    """Return one run for each combination of data set, seed and initial weights (pretrained or random).

    Raise `ConfigError` if a setting is out of range, or if the runs would overwrite the model or the data.
    """
    for name, path in (("--model", settings.model), ("--data", settings.data)):
        inside = path.resolve()
        if (settings.output / RUNS_FOLDER).resolve() in (inside, *inside.parents):
            raise ConfigError(
                f"--output {settings.output}: the runs would replace {name} {path}; choose another folder"
            )
    model_sha256 = hash_model(settings.model)
    return [run for data_set in sets for run in _runs_of_set(settings, suite, data_set, model_sha256)]


def _runs_of_set(settings: SuiteSettings, suite: Suite, data_set: DataSet, model_sha256: str) -> Iterator[Run]:
    stand_in = "train" not in data_set.splits
    resolved = resolve_settings(data_set.name, suite, settings.overrides)
    files: dict[str, Any] = {
        "model": settings.model,
        "train": data_set.file("dev" if stand_in else "train"),
        "dev": None if stand_in else data_set.file("dev"),
        "test": data_set.file("test"),
        "data_set": f"{data_set.name} ({STAND_IN})" if stand_in else data_set.name,
    }
    common_record = {
        "suite": suite.name,
        "data_set": data_set.name,
        "stand_in": stand_in,
        "settings": resolved,
        "model_sha256": model_sha256,
        "data_sha256": hash_tables({split: data_set.file(split) for split in SPLITS if split in data_set.splits}),
    }
    for seed in settings.seeds:
        for weights in settings.arms:
            arm = arm_name(weights, settings.overlapping)
            finetune_settings = FinetuneSettings(
                output=settings.output / RUNS_FOLDER / data_set.name / arm / f"seed-{seed}",
                seed=seed,
                from_scratch=weights == "scratch",
                overlapping=settings.overlapping,
                **files,
                **resolved,
            )
            yield Run(data_set, arm, finetune_settings, common_record | {"arm": arm, "seed": seed})


# ---- runs in the output folder


def finished_records(output: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (run folder, content of its `RECORD_FILE`) for every finished run in `output`, sorted by path."""
    for path in sorted((output / RUNS_FOLDER).rglob(SCORES_FILE)):
        yield path.parent, read_run_file(path.with_name(RECORD_FILE))


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a finished run. Raise `DataError` if the file can't be read."""
    return read_json(path, advice=f"remove {path.parent} to repeat the run")


def check_finished(runs: Sequence[Run], output: Path, overwrite: bool) -> set[Path]:
    """Return the folders of the finished runs in `output`. Raise `ConfigError` if a finished run does not match `runs`.

    All runs in an output folder must use the same suite and model. All runs on a data set must use the same settings
    and CSV files. If `overwrite` is true, finished runs that are also in `runs` are neither checked nor returned.
    """
    repeated = {run.folder for run in runs}
    current_records = {run.data_set.name: run.record for run in runs}
    other_set_record = {name: runs[0].record[name] for name in ("suite", "model_sha256")}
    finished = set()
    problems = []
    for folder, record in finished_records(output):
        if overwrite and folder in repeated:
            continue
        finished.add(folder)
        current = current_records.get(record.get("data_set", ""), other_set_record)
        if differences := list(_differences(record, current)):
            problems.append(f"{folder}: this finished run used {', '.join(differences)}")
    if problems:
        more = f" (and {len(problems) - 1} more runs)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}; choose another --output, or pass --overwrite to replace these runs")
    return finished


def _differences(record: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Yield each difference between a finished run and the current command, as text for a message.

    `record` is the content of `RECORD_FILE` in the finished run, and `current` is the content for the current command.
    If `current` has no settings, only the suites and models are compared. A record without a suite is one of GUE.
    """
    if (finished_suite := record.get("suite", FIRST_SUITE)) != current["suite"]:
        yield f"the suite {finished_suite} instead of {current['suite']}"
    if record.get("model_sha256") != current["model_sha256"]:
        yield "another model"
    if "settings" not in current:
        return
    if record.get("data_sha256") != current["data_sha256"] or record.get("stand_in") != current["stand_in"]:
        yield "other CSV files"
    finished_settings = record.get("settings", {})
    for name in sorted({*finished_settings, *current["settings"]}):
        if finished_settings.get(name) != current["settings"].get(name):
            yield f"{name} {finished_settings.get(name)} instead of {current['settings'].get(name)}"
