"""Fine-tuning runs of the GUE suite, and checks of finished runs.

There is one run per data set, seed and arm. An arm is `pretrained` or `scratch`, with overlapping or non-overlapping
k-mers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.evaluate.gue_suite import SPLITS, STAND_IN, DataSet, set_settings
from dnabert_rm.evaluate.suite_settings import SuiteSettings
from dnabert_rm.finetune.finetune_settings import SCORES_FILE, FinetuneSettings, flag
from dnabert_rm.finetune.fingerprints import hash_model, hash_tables
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import read_json

RUNS_FOLDER = "runs"
RECORD_FILE = "gue_run.json"
"""File beside a run's scores.json with data set, arm, seed, settings, and SHA-256 of the model and CSV files."""
LOG_FILE = "log.txt"


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


def resolve_settings(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fine-tuning settings of a data set.

    `overrides` take precedence over GUE's settings, and GUE's settings over the defaults of `FinetuneSettings`. If
    `overrides` has `epochs` but not `max_steps`, GUE's `max_steps` is removed, because it would override `epochs`.
    """
    gue_settings = asdict(set_settings(name))
    if "epochs" in overrides and "max_steps" not in overrides:
        gue_settings["max_steps"] = None
    defaults = {"dropout": FinetuneSettings.dropout, "precision": FinetuneSettings.precision, "max_tokens": None}
    return defaults | gue_settings | dict(overrides)


def make_runs(suite: SuiteSettings, sets: Sequence[DataSet]) -> list[Run]:
    """Return one run per data set, seed and choice of initial weights.

    Raise `ConfigError` if a setting is out of range, or if the runs would overwrite the model or the data.
    """
    for name, path in (("--model", suite.model), ("--data", suite.data)):
        inside = path.resolve()
        if (suite.output / RUNS_FOLDER).resolve() in (inside, *inside.parents):
            raise ConfigError(f"--output {suite.output}: the runs would replace {name} {path}; choose another folder")
    model_sha256 = hash_model(suite.model)
    return [run for data_set in sets for run in _runs_of_set(suite, data_set, model_sha256)]


def _runs_of_set(suite: SuiteSettings, data_set: DataSet, model_sha256: str) -> Iterator[Run]:
    stand_in = "train" not in data_set.splits
    settings = resolve_settings(data_set.name, suite.overrides)
    files: dict[str, Any] = {
        "model": suite.model,
        "train": data_set.file("dev" if stand_in else "train"),
        "dev": None if stand_in else data_set.file("dev"),
        "test": data_set.file("test"),
        "data_set": f"{data_set.name} ({STAND_IN})" if stand_in else data_set.name,
    }
    common_record = {
        "data_set": data_set.name,
        "stand_in": stand_in,
        "settings": settings,
        "model_sha256": model_sha256,
        "data_sha256": hash_tables({split: data_set.file(split) for split in SPLITS if split in data_set.splits}),
    }
    for seed in suite.seeds:
        for weights in suite.arms:
            arm = arm_name(weights, suite.overlapping)
            finetune_settings = FinetuneSettings(
                output=suite.output / RUNS_FOLDER / data_set.name / arm / f"seed-{seed}",
                seed=seed,
                from_scratch=weights == "scratch",
                overlapping=suite.overlapping,
                **files,
                **settings,
            )
            yield Run(data_set, arm, finetune_settings, common_record | {"arm": arm, "seed": seed})


# ---- runs in the output folder


def finished_records(output: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the content of `RECORD_FILE` for every finished run in `output`, sorted by path."""
    for path in sorted((output / RUNS_FOLDER).rglob(SCORES_FILE)):
        yield path.parent, read_run_file(path.with_name(RECORD_FILE))


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a finished run. Raise `DataError` if the file can't be read."""
    return read_json(path, advice=f"remove {path.parent} to repeat the run")


def check_finished(runs: Sequence[Run], output: Path, overwrite: bool) -> set[Path]:
    """Return the folders of the finished runs in `output`. Raise `ConfigError` if a finished run does not match `runs`.

    All runs in an output folder must use the same model. All runs on a data set must use the same settings and CSV
    files. If `overwrite` is true, finished runs that are also in `runs` are neither checked nor returned.
    """
    repeated = {run.folder for run in runs}
    current_records = {run.data_set.name: run.record for run in runs}
    other_set_record = {"model_sha256": runs[0].record["model_sha256"]}
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
    If `current` has no settings, only the models are compared.
    """
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
