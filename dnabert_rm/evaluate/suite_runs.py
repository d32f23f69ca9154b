"""One fine-tuning run of `gue`: a data set, an arm and a seed; what it is told, and what earlier calls left of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dnabert_rm.evaluate.gue_suite import SPLITS, STAND_IN, DataSet, settings_of
from dnabert_rm.finetune.finetune_settings import SCORES_FILE, FinetuneSettings, flag
from dnabert_rm.model.pretrained import check_model_folder
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import read_json, sha256_of_file

RUNS_FOLDER = "runs"
RECORD_FILE = "gue_run.json"
"""What a run was told, beside its scores.json: data set, arm, seed, settings, and the bytes of model and data."""
LOG_FILE = "log.txt"
WEIGHTS = ("pretrained", "scratch")


@dataclass(frozen=True)
class Plan:
    """What one call of `gue` is asked for, apart from its data sets."""

    model: Path
    output: Path
    seeds: tuple[int, ...] = (42,)
    arms: tuple[str, ...] = ("pretrained",)
    overlapping: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings for all data sets in place of the table's, by the names of `FinetuneSettings`."""

    def __post_init__(self) -> None:
        if unknown := [arm for arm in self.arms if arm not in WEIGHTS]:
            raise ConfigError(f"--arms {','.join(unknown)}: there are {' and '.join(WEIGHTS)}")
        for name in ("seeds", "arms"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"--{name} {','.join(map(str, values))}: name at least one, and each once")


@dataclass(frozen=True)
class Run:
    """One process of `finetune`."""

    data_set: DataSet
    arm: str
    settings: FinetuneSettings
    record: dict[str, Any]
    """What `RECORD_FILE` says of it."""

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return self.settings.output

    @property
    def title(self) -> str:
        """Names it in a line of text."""
        stand_in = f" ({STAND_IN})" if self.record["stand_in"] else ""
        return f"{self.data_set.name}{stand_in} {self.arm} seed {self.settings.seed}"

    def command(self) -> list[str]:
        """The command line of its process."""
        settings = self.settings
        words = [sys.executable, "-m", "dnabert_rm.cli.main", "finetune", "--overwrite"]
        told = {name: getattr(settings, name) for name in ("model", "train", "dev", "test", "output", "data_set")}
        for name, value in (told | self.record["settings"] | {"seed": settings.seed}).items():
            if value is not None:
                words += [flag(name), str(value)]
        return words + ["--from-scratch"] * settings.from_scratch + ["--non-overlapping"] * (not settings.overlapping)


def arm_name(weights: str, overlapping: bool) -> str:
    """`pretrained`, `scratch`, or one of them with `-non-overlapping`: an arm's name and folder."""
    return weights if overlapping else f"{weights}-non-overlapping"


def resolve_settings(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data set: GUE's, the command line's over them, `FinetuneSettings`' defaults for the rest.

    `epochs` without `max_steps` lifts the table's `max_steps`, which would overrule it.
    """
    table = asdict(settings_of(name))
    if "epochs" in overrides and "max_steps" not in overrides:
        table["max_steps"] = None
    rest = {"dropout": FinetuneSettings.dropout, "precision": FinetuneSettings.precision, "max_tokens": None}
    return rest | table | dict(overrides)


def make_runs(plan: Plan, sets: Sequence[DataSet]) -> list[Run]:
    """The runs over some data sets, a data set after the other; `ConfigError` for a setting that is out of range."""
    model_sha256 = hash_model(plan.model)
    runs = []
    for data_set in sets:
        stand_in = "train" not in data_set.splits
        settings = resolve_settings(data_set.name, plan.overrides)
        files: dict[str, Any] = {
            "model": plan.model,
            "train": data_set.file("dev" if stand_in else "train"),
            "dev": None if stand_in else data_set.file("dev"),
            "test": data_set.file("test"),
            "data_set": f"{data_set.name} ({STAND_IN})" if stand_in else data_set.name,
        }
        common = {
            "data_set": data_set.name, "stand_in": stand_in, "settings": settings, "model_sha256": model_sha256,
            "data_sha256": hash_tables(data_set),
        }  # fmt: skip
        for seed in plan.seeds:
            for weights in plan.arms:
                arm = arm_name(weights, plan.overlapping)
                own: dict[str, Any] = {
                    "seed": seed,
                    "from_scratch": weights == "scratch",
                    "overlapping": plan.overlapping,
                }
                folder = plan.output / RUNS_FOLDER / data_set.name / arm / f"seed-{seed}"
                told = FinetuneSettings(output=folder, **files, **settings, **own)
                runs.append(Run(data_set, arm, told, common | {"arm": arm, "seed": seed}))
    return runs


def hash_model(folder: Path) -> str:
    """SHA-256 over what a model's folder is loaded from; `CheckpointError` where there is no model."""
    check_model_folder(folder)
    kinds = ("config.json", "vocab.txt", "*.safetensors", "*.bin")
    names = sorted({path.name for kind in kinds for path in folder.glob(kind)})
    lines = [f"{sha256_of_file(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tables(data_set: DataSet) -> dict[str, str]:
    """SHA-256 of each table that is there; `DataError` for one that can't be read."""
    try:
        return {split: sha256_of_file(data_set.file(split)) for split in SPLITS if split in data_set.splits}
    except OSError as error:
        raise DataError(f"{data_set.folder}: {error.filename} can't be read ({error.strerror})") from None


# ---- what lies in the output folder


def finished_records(output: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder and record of every finished run in an output folder, in the order of paths."""
    for path in sorted((output / RUNS_FOLDER).rglob(SCORES_FILE)):
        yield path.parent, read_run_file(path.with_name(RECORD_FILE))


def read_run_file(path: Path) -> dict[str, Any]:
    """Read a JSON file of a finished run; `DataError` says how to repeat the run."""
    return read_json(path, advice=f"remove {path.parent}, and its run is done again")


def check_kept(runs: Sequence[Run], output: Path, overwrite: bool) -> set[Path]:
    """The folders of finished runs; `ConfigError` where one was told something else than this call tells its data set.

    So one table holds one model, and arms and seeds of a data set are told the same. `overwrite` leaves the runs of
    this call out of it.
    """
    own, told = {run.folder for run in runs}, {run.data_set.name: run.record for run in runs}
    finished, faults = set(), []
    for folder, record in finished_records(output):
        if overwrite and folder in own:
            continue
        finished.add(folder)
        now = told.get(record.get("data_set", ""), {"model_sha256": runs[0].record["model_sha256"]})
        if differences := list(_differences(record, now)):
            faults.append(f"{folder}: finished with {', '.join(differences)}")
    if faults:
        more = f" (and {len(faults) - 1} more such runs)" if len(faults) > 1 else ""
        raise ConfigError(f"{faults[0]}{more}; name another --output, or replace such runs with --overwrite")
    return finished


def _differences(record: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What a record says otherwise than `now`, in words."""
    if record.get("model_sha256") != now["model_sha256"]:
        yield "another model"
    if "settings" not in now:
        return
    if record.get("data_sha256") != now["data_sha256"] or record.get("stand_in") != now["stand_in"]:
        yield "other tables"
    there = record.get("settings", {})
    for name in sorted({*there, *now["settings"]}):
        if there.get(name) != now["settings"].get(name):
            yield f"{name} {there.get(name)}, not {now['settings'].get(name)}"
