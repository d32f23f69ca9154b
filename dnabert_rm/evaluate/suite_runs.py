"""Fine-tuning runs of the GUE suite, one per data set, arm and seed: their settings, records and checks."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.evaluate.gue_suite import SPLITS, STAND_IN, DataSet, set_settings
from dnabert_rm.evaluate.suite_settings import SuiteSettings
from dnabert_rm.finetune.finetune_settings import SCORES_FILE, FinetuneSettings, flag
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import read_json, sha256_of_file

RUNS_FOLDER = "runs"
RECORD_FILE = "gue_run.json"
"""Record of a run, beside its scores.json: data set, arm, seed, settings, and SHA-256 of model and tables."""
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Run:
    """One `dnabert-rm finetune` process, with its settings and record."""

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
        """Name of the run in messages: data set, arm and seed."""
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
    """Return the name of an arm: "pretrained" or "scratch", plus "-non-overlapping" if `overlapping` is false."""
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
    """Return one run per data set, seed and arm. Raise `ConfigError` if a setting is out of range."""
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
        "data_sha256": hash_tables(data_set),
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


def hash_model(folder: Path) -> str:
    """Return one SHA-256 for a model folder, computed from its configuration, vocabulary and weight files.

    Raise `CheckpointError` if the folder contains no model.
    """
    check_model_folder(folder)
    # tokenizer.json counts only where it is the vocabulary that is read.
    vocabulary = "vocab.txt" if (folder / "vocab.txt").is_file() else "tokenizer.json"
    patterns = ("config.json", vocabulary, "*.safetensors", "*.bin")
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    lines = [f"{sha256_of_file(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tables(data_set: DataSet) -> dict[str, str]:
    """Return the SHA-256 of each table of a data set, keyed by split. Raise `DataError` if a table can't be read."""
    try:
        return {split: sha256_of_file(data_set.file(split)) for split in SPLITS if split in data_set.splits}
    except OSError as error:
        raise DataError(
            f"{data_set.folder}: {error.filename} can't be read ({error.strerror}); check the file"
        ) from None


# ---- runs in the output folder


def finished_records(output: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and record of every finished run in an output folder, sorted by path."""
    for path in sorted((output / RUNS_FOLDER).rglob(SCORES_FILE)):
        yield path.parent, read_run_file(path.with_name(RECORD_FILE))


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a finished run. The error message says how to repeat the run."""
    return read_json(path, advice=f"remove {path.parent} to repeat the run")


def check_finished(runs: Sequence[Run], output: Path, overwrite: bool) -> set[Path]:
    """Return the folders of finished runs. Raise `ConfigError` if a finished run does not match `runs`.

    All runs in an output folder must have the same model. All runs of a data set must have the same settings and
    tables. With `overwrite`, finished runs that are also in `runs` are neither checked nor returned.
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
            problems.append(f"{folder}: finished with {', '.join(differences)}")
    if problems:
        more = f" (and {len(problems) - 1} more runs)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}; choose another --output, or pass --overwrite to replace these runs")
    return finished


def _differences(record: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of each difference between the record of a finished run and the record `current`.

    If `current` has no settings, only the models are compared.
    """
    if record.get("model_sha256") != current["model_sha256"]:
        yield "another model"
    if "settings" not in current:
        return
    if record.get("data_sha256") != current["data_sha256"] or record.get("stand_in") != current["stand_in"]:
        yield "other tables"
    finished_settings = record.get("settings", {})
    for name in sorted({*finished_settings, *current["settings"]}):
        if finished_settings.get(name) != current["settings"].get(name):
            yield f"{name} {finished_settings.get(name)} instead of {current['settings'].get(name)}"
