"""Content of a run folder for figures and reports: metrics.jsonl, config.toml and environment.json. Torch-free."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.checkpoint.run_folder import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    METRICS_NAME,
    TOKENIZER_NAME,
    saved_steps,
    step_folder,
)
from dnabert_rm.data.manifest import MANIFEST_NAME
from dnabert_rm.masking.schedule import resolve_phase_ends
from dnabert_rm.train.validation_record import loss_curves, model_bits, validation_of
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import read_json_or_empty

TOKENS = "consumed_tokens"


@dataclass(frozen=True)
class Phase:
    """A masking phase of a run: steps `first` … `end` - 1, and the largest mask span in these steps."""

    number: int
    first: int
    end: int
    max_span: int


@dataclass(frozen=True)
class Points:
    """The N recorded points of one curve, as arrays of shape (N,)."""

    steps: NDArray[np.int64]
    tokens: NDArray[np.float64]
    """Total number of tokens consumed by the end of each step; NaN if not recorded."""
    values: NDArray[np.float64]

    def x(self, axis: str) -> NDArray:
        """Return the x coordinates of the points: steps if `axis` is "steps", otherwise tokens."""
        return self.steps if axis == "steps" else self.tokens


@dataclass(frozen=True)
class Run:
    """Content of a run folder: logged steps, configuration and environment."""

    folder: Path
    name: str
    rows: list[dict[str, Any]]
    """Logged steps, the lines of metrics.jsonl."""
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sections of the resolved configuration; empty if the file is missing."""
    environment: dict[str, Any] = field(default_factory=dict)

    def setting(self, section: str, name: str, default: Any = None) -> Any:
        """Return the value of a configuration field, or `default` if the configuration does not have the field."""
        return self.config.get(section, {}).get(name, default)

    @property
    def first_validation(self) -> int | None:
        """Number of steps before the run's first validation; 0 if it has none, None if that is unknown.

        A run also validates after its last step.
        """
        every = self.setting("validation", "every")
        if not every:
            return every
        ends = (self.setting("train", name) for name in ("steps", "stop_after"))
        return min([every, *(end for end in ends if end)])

    def curve(self, *path: str) -> Points:
        """Return the recorded points of a metric.

        `path` contains the nested keys of the metric in metrics.jsonl: `"loss"`, or `"validation", "span_6", "loss"`.
        """
        recorded = [(row, value) for row in self.rows if (value := _at(row, path)) is not None]
        steps = np.array([row["step"] for row, _ in recorded], dtype=np.int64)
        tokens = np.array([row.get(TOKENS, np.nan) for row, _ in recorded], dtype=np.float64)
        return Points(steps, tokens, np.array([value for _, value in recorded], dtype=np.float64))

    @cached_property
    def held_out_names(self) -> list[str]:
        """Names of the held-out losses, such as "span_6" or "token", in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in loss_curves(validation_of(row))))

    @cached_property
    def hidden_bases(self) -> list[int]:
        """Numbers of hidden bases for which bits per base were measured, in ascending order."""
        return sorted({hidden for row in self.rows for hidden in model_bits(validation_of(row))})

    @cached_property
    def k(self) -> int | None:
        """k-mer length, from the newest checkpoint or the prepared data. None if unknown or if tokens aren't k-mers."""
        for step in reversed(saved_steps(self.folder)):
            if record := read_json_or_empty(step_folder(self.folder, step) / TOKENIZER_NAME):
                return record.get("k")
        for data in self.setting("data", "path") or []:
            if manifest := read_json_or_empty(Path(data) / MANIFEST_NAME):
                return (manifest.get("tokenizer") or {}).get("k")
        return None

    @cached_property
    def phases(self) -> list[Phase]:
        """Masking phases with at least one step. The list is empty if the masking policy has no phases.

        Phase ends are from the configuration, but no phase ends after the last logged step. Largest spans are from
        metrics.jsonl.
        """
        if not str(self.setting("masking", "policy")).startswith("randommask"):
            return []
        total = self.setting("train", "steps")
        ends = resolve_phase_ends(self.setting("masking", "phase_ends") or [], total)
        done = self.rows[-1]["step"] + 1
        # The last phase is open-ended.
        borders = [0, *ends[:-1], max(total, ends[-1])]
        spans = {row["phase"]: row["max_span"] for row in self.rows if "max_span" in row}
        return [
            Phase(number, first, min(end, done), spans[number])
            for number, (first, end) in enumerate(pairwise(borders), 1)
            if first < min(end, done) and number in spans
        ]

    def position(self, step: int, axis: str) -> float:
        """Return the x coordinate of the start of a step.

        The coordinate is the step number, or the number of tokens consumed before the step if `axis` is "tokens".
        """
        if axis == "steps":
            return float(step)
        points = self.curve("loss")
        return float(np.interp(step, [0, *(points.steps + 1)], [0, *points.tokens]))


def _at(row: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read a run folder. Raise `DataError` if `folder` is not a run folder or one of its files is damaged.

    An incomplete last line of metrics.jsonl is skipped, because the run may still be writing it. config.toml and
    environment.json may be missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; pass the --output of a pretraining run")
    rows = _read_rows(folder / METRICS_NAME)
    config = _read(folder / CONFIG_NAME, tomllib.loads)
    return Run(folder, name or folder.resolve().name, rows, config, _read(folder / ENVIRONMENT_NAME, json.loads))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; pass the --output of a pretraining run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the file") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not a JSON object with the metrics of a step; remove the line") from None
    if not rows:
        raise DataError(f"{path}: no step is logged yet; wait until the run logs its first step")
    return rows


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """Return the parsed content of a file, or an empty dict if the file does not exist."""
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fix or remove the file") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: does not contain a JSON object; fix or remove the file")
    return content


def read_runs(folders: Sequence[str | Path], names: Sequence[str] = ()) -> list[Run]:
    """Read several run folders. The runs get the names `names`, or by default short names of the folders."""
    return [read_run(folder, name) for folder, name in zip(folders, own_names(folders, names), strict=True)]


def own_names(folders: Sequence[str | Path], names: Sequence[str] = ()) -> Sequence[str]:
    """Return `names`, or short names of the folders if `names` is empty.

    Raise `ConfigError` unless all names are distinct and there is one name per folder.
    """
    if names and len(names) != len(folders):
        raise ConfigError(
            f"--names: {len(names)} names for {len(folders)} runs; pass one name per run, separated by commas"
        )
    names = names or short_names(folders)
    if len(set(names)) < len(names):
        raise ConfigError(f"--names {','.join(names)}: two runs have the same name; use a different name for each run")
    return names


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """Return a distinct name for each folder: the shortest path endings that differ, e.g. "a/run" and "b/run"."""
    parts = [Path(folder).resolve().parts for folder in folders]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def smooth(points: Points, width: int, phases: Sequence[Phase] = ()) -> NDArray[np.float64]:
    """Return the values of a curve, each replaced by the mean of the `width` values around the point.

    `width` is odd. Each mean is over values of one masking phase, so the jump of the loss at a new phase is kept. Near
    the start and end of a phase, fewer values are averaged. Values that are not finite affect only nearby means.
    """
    smoothed = np.empty(len(points.values))
    cuts = np.searchsorted(points.steps, [phase.first for phase in phases])
    half = width // 2
    for first, end in pairwise(sorted({0, *cuts.tolist(), len(smoothed)})):
        for index in range(first, end):
            smoothed[index] = points.values[max(first, index - half) : min(end, index + half + 1)].mean()
    return smoothed
