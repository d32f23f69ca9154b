"""A run folder as the figures and the report read it: metrics.jsonl, config.toml, environment.json. Torch-free."""

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

from dnabert_rm.checkpoint.run_folder import CONFIG_NAME
from dnabert_rm.masking.schedule import resolve_phase_ends
from dnabert_rm.utils.errors import ConfigError, DataError

METRICS_NAME, ENVIRONMENT_NAME = "metrics.jsonl", "environment.json"
TOKENS = "consumed_tokens"


@dataclass(frozen=True)
class Phase:
    """Steps `first` … `end` - 1 of a run, with the largest span of their masks."""

    number: int
    first: int
    end: int
    max_span: int


@dataclass(frozen=True)
class Points:
    """One curve: `steps` (N,) int64, `tokens` (N,) float64 consumed by then (NaN: not recorded), `values` (N,)."""

    steps: NDArray[np.int64]
    tokens: NDArray[np.float64]
    values: NDArray[np.float64]

    def x(self, axis: str) -> NDArray:
        """Positions on the axis "steps" or "tokens"."""
        return self.steps if axis == "steps" else self.tokens


@dataclass(frozen=True)
class Run:
    """What a run folder says of itself."""

    folder: Path
    name: str
    rows: list[dict[str, Any]]
    """Logged steps, as `train.monitor` wrote them."""
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sections of the resolved configuration; empty where the file is missing."""
    environment: dict[str, Any] = field(default_factory=dict)

    def setting(self, section: str, name: str) -> Any:
        """A field of the configuration; None where it is not known."""
        return self.config.get(section, {}).get(name)

    def curve(self, *path: str) -> Points:
        """The rows that hold a number under these keys, e.g. `"loss"` or `"validation", "span_6", "loss"`."""
        found = [(row, value) for row in self.rows if (value := _at(row, path)) is not None]
        steps = np.array([row["step"] for row, _ in found], dtype=np.int64)
        tokens = np.array([row.get(TOKENS, np.nan) for row, _ in found], dtype=np.float64)
        return Points(steps, tokens, np.array([value for _, value in found], dtype=np.float64))

    @cached_property
    def held_out_names(self) -> list[str]:
        """Curves of the validation, "span_6" … or "token", in the order of the run's records."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("validation") or {}))

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases with steps of their own, up to where the run has come; none where its masks have no phases.

        Ends are the configuration's; the spans are those that were recorded.
        """
        if not str(self.setting("masking", "policy")).startswith("randommask"):
            return []
        total = self.setting("train", "steps")
        ends = resolve_phase_ends(self.setting("masking", "phase_ends") or [], total)
        # The last phase goes on for ever.
        borders, done = [0, *ends[:-1], max(total, ends[-1])], self.rows[-1]["step"] + 1
        spans = {row["phase"]: row["max_span"] for row in self.rows if "max_span" in row}
        return [
            Phase(number, first, min(end, done), spans[number])
            for number, (first, end) in enumerate(pairwise(borders), 1)
            if first < min(end, done) and number in spans
        ]

    def position(self, step: int, axis: str) -> float:
        """Where the beginning of a step lies on the axis "steps" or "tokens"."""
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
    """Read a run folder; `DataError` where it is none, or its records are damaged.

    A torn last line, which a run under way may leave, is passed over. config.toml and environment.json may be missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a run folder, the --output of a pretraining run")
    rows = _read_rows(folder / METRICS_NAME)
    config = _read(folder / CONFIG_NAME, tomllib.loads)
    return Run(folder, name or folder.resolve().name, rows, config, _read(folder / ENVIRONMENT_NAME, json.loads))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name a run folder, the --output of a pretraining run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: is no logged step; remove the line") from None
    if not rows:
        raise DataError(f"{path}: holds no logged step yet; wait for the run's first one")
    return rows


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """A file's object, empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend or remove the file") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no object; mend or remove the file")
    return content


def read_runs(folders: Sequence[str | Path], names: Sequence[str] = ()) -> list[Run]:
    """Runs under names of their own: those given, or as much of their paths as tells them apart."""
    return [read_run(folder, name) for folder, name in zip(folders, own_names(folders, names), strict=True)]


def own_names(folders: Sequence[str | Path], names: Sequence[str] = ()) -> Sequence[str]:
    """The names given, or the folders' short ones; `ConfigError` unless each folder has one of its own."""
    if names and len(names) != len(folders):
        raise ConfigError(f"--names: {len(names)} names for {len(folders)} runs; give one a run, with commas between")
    names = names or short_names(folders)
    if len(set(names)) < len(names):
        raise ConfigError(f"--names {','.join(names)}: two runs have one name; name each of them")
    return names


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """The folders' last parts, as many of them as make all names different."""
    parts = [Path(folder).resolve().parts for folder in folders]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def smooth(points: Points, width: int, phases: Sequence[Phase] = ()) -> NDArray[np.float64]:
    """Mean of the `width` points around each (an odd number), (N,); fewer at the ends, and never over two phases.

    So the jump at the beginning of a phase stays a jump. A value that is not finite spoils its neighbours' means only.
    """
    smoothed = np.empty(len(points.values))
    cuts = np.searchsorted(points.steps, [phase.first for phase in phases])
    half = width // 2
    for first, end in pairwise(sorted({0, *cuts.tolist(), len(smoothed)})):
        for index in range(first, end):
            smoothed[index] = points.values[max(first, index - half) : min(end, index + half + 1)].mean()
    return smoothed
