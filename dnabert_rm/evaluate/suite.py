"""Benchmark suites: data sets, metrics, fine-tuning settings and published scores, read from TOML files. Torch-free."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from dnabert_rm.config.merge import did_you_mean
from dnabert_rm.config.schema import Setting, find_problems, setting, settings_of, value_of
from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.utils.errors import ConfigError, DataError

METRICS = {"classes": ("mcc", "f1_macro", "accuracy"), "regression": ("r2", "spearman", "pearson")}
"""Metrics of each task, as keys of `finetune`'s scores.json. The first one is the default."""
DEFAULT_SUITE = "gue"
_WILDCARDS = set("*?[")


@dataclass(frozen=True)
class SetSettings:
    """Fine-tuning settings of a data set. The fields have the same names as in `FinetuneSettings`."""

    epochs: int = 3
    eval_steps: int = 200
    warmup_steps: int = 50
    max_steps: int | None = None
    """Number of optimizer steps; overrides `epochs`."""
    learning_rate: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.01


@dataclass(frozen=True)
class SetFacts:
    """Facts about some data sets of a suite: the keys of `[[data_sets]]`, without the fine-tuning settings."""

    names: tuple[str, ...] = setting()
    """Ends of folder paths, such as `mouse/0`. `*`, `?` and `[` are wildcards, as in `peaks/*`."""
    family: str | None = None
    """Task that the data sets share. The table has one mean per family. By default each data set is its own family."""
    task: Literal["classes", "regression"] = "classes"
    metric: Literal["mcc", "f1_macro", "accuracy", "r2", "spearman", "pearson"] | None = None
    """Score of the tables; by default MCC, or R² for regression."""
    classes: int | None = setting(None, minimum=2)
    """Number of classes."""
    bases: int | None = setting(None, minimum=1)
    """Length of the sequences, or their median length."""
    tokens: int | None = setting(None, minimum=1)
    """Maximum number of input tokens in the benchmark's own scripts."""
    note: str | None = None
    """Sentence below tables with scores of these data sets."""


@dataclass(frozen=True)
class SuiteSets:
    """Data sets of a suite with the same facts and settings."""

    facts: SetFacts
    settings: SetSettings = SetSettings()

    @property
    def metric(self) -> str:
        """Key of the metric in scores.json."""
        return self.facts.metric or METRICS[self.facts.task][0]

    def family(self, name: str) -> str:
        """Return the family of one of these data sets."""
        return self.facts.family or name


@dataclass(frozen=True)
class Suite:
    """A benchmark suite: one TOML file."""

    path: str
    """File, for messages."""
    name: str
    """Name in headings and messages, e.g. "GUE"."""
    sets: tuple[SuiteSets, ...]
    """In the order of the tables."""
    source: str = ""
    """Source of the published scores."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Published score × 100 by method and family."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all data sets that are named without wildcards."""
        return tuple(name for sets in self.sets for name in sets.facts.names if not is_pattern(name))

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Names of the data sets of each family. Families with a wildcard are left out: their size is unknown."""
        found: dict[str, list[str]] = {}
        for sets in self.sets:
            for name in sets.facts.names:
                found.setdefault(sets.family(name), []).append(name)
        return {family: tuple(names) for family, names in found.items() if not any(map(is_pattern, names))}

    def find(self, name: str) -> SuiteSets | None:
        """Return the facts and settings of a data set, or None if the suite does not have it."""
        for sets in self.sets:
            if any(_matches(name.split("/"), pattern, whole=True) for pattern in sets.facts.names):
                return sets
        return None

    def family_of(self, name: str) -> str | None:
        """Return the family of a data set, e.g. "TF mouse", or None if the suite does not have the data set."""
        found = self.find(name)
        return found.family(name) if found else None

    def metric_of(self, name: str) -> str:
        """Return the key of a data set's metric in `scores.json`."""
        found = self.find(name)
        return found.metric if found else METRICS["classes"][0]

    def task_of(self, name: str) -> str | None:
        """Return "classes" or "regression", or None if the suite does not have the data set."""
        found = self.find(name)
        return found.facts.task if found else None

    def settings_of(self, name: str) -> SetSettings:
        """Return the settings of a data set, or default settings if the suite does not have the data set."""
        found = self.find(name)
        return found.settings if found else SetSettings()

    def order_of(self, name: str) -> int:
        """Return the position of a data set in tables. Data sets that the suite does not have come last."""
        patterns = [pattern for sets in self.sets for pattern in sets.facts.names]
        matches = (i for i, pattern in enumerate(patterns) if _matches(name.split("/"), pattern, whole=True))
        return next(matches, len(patterns))

    def name_of_folder(self, folder: Path) -> str | None:
        """Return the name of the data set in a folder: the end of its path, such as `mouse/0`.

        Return None if the suite does not have the data set. Raise `DataError` if two names of the suite match.
        """
        parts = folder.absolute().parts
        found = [pattern for sets in self.sets for pattern in sets.facts.names if _matches(parts, pattern)]
        if len(found) > 1:
            raise DataError(
                f"{self.path}: [[data_sets]] names: {found[0]} and {found[1]} both match {folder}; change one of them"
            )
        return "/".join(parts[-len(found[0].split("/")) :]) if found else None


def is_pattern(name: str) -> bool:
    """Return whether a name has wildcards."""
    return bool(_WILDCARDS & set(name))


def _matches(parts: Sequence[str], pattern: str, whole: bool = False) -> bool:
    """Return whether the end of a path, or the whole path, matches a pattern. Wildcards do not match `/`."""
    wanted = pattern.split("/")
    if len(parts) < len(wanted) or (whole and len(parts) > len(wanted)):
        return False
    return all(map(fnmatchcase, parts[-len(wanted) :], wanted))


# ---- loading


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(item.name.removesuffix(".toml") for item in _shipped().iterdir() if item.name.endswith(".toml"))


def _shipped() -> Traversable:
    return resources.files("dnabert_rm") / "suites"


def load_suite(name: str) -> Suite:
    """Load a shipped suite by its name, or a TOML file by its path.

    Raise `ConfigError` if there is no such suite, or if the file has wrong keys or values: one line for each of them.
    """
    is_path = name.endswith(".toml") or "/" in name
    if not is_path and name not in suite_names():
        raise ConfigError(
            f"--suite {name}: no such suite; choose one of {', '.join(suite_names())}, or pass a TOML file"
        )
    file = Path(name) if is_path else _shipped() / f"{name}.toml"
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--suite {name}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--suite {name}: {error}; fix the file") from None
    problems: list[str] = []
    suite = _suite(name if is_path else f"{name}.toml", content, problems)
    if problems:
        raise ConfigError("\n  ".join(f"--suite {name}: {problem}" for problem in problems))
    return suite


def _suite(path: str, content: Mapping[str, Any], problems: list[str]) -> Suite:
    """Return the suite of a TOML file. Append a message to `problems` for each wrong key or value."""
    known = ("name", "source", "data_sets", "published")
    problems += [f"{key}: unknown key{did_you_mean(key, known)}" for key in content if key not in known]
    for key in ("name", "source"):
        if not isinstance(content.get(key, ""), str):
            problems.append(f"{key}: must be text, not {content[key]!r}")
    if not content.get("name"):
        problems.append("name: missing; add the name of the suite for headings")
    entries = content.get("data_sets", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        problems.append("data_sets: must be at least one table [[data_sets]]")
        entries = []
    sets = [_sets(f"[[data_sets]] number {number}: ", entry, problems) for number, entry in enumerate(entries, 1)]
    suite = Suite(path, content.get("name", ""), tuple(filter(None, sets)), content.get("source", ""))
    if problems:  # the checks below need a valid list of data sets
        return suite
    problems += _repeated_names(suite)
    problems += _mixed_families(suite)
    published = content.get("published", {})
    problems += _published_problems(published, suite)
    return Suite(suite.path, suite.name, suite.sets, suite.source, published)


def _sets(label: str, entry: Mapping[str, Any], problems: list[str]) -> SuiteSets | None:
    """Return the data sets of one `[[data_sets]]` table, or None if a key or value is wrong."""
    facts: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    known = entry_keys()
    count = len(problems)
    for key, value in entry.items():
        if key not in known:
            problems.append(f"{label}{key}: unknown key{did_you_mean(key, known)}")
            continue
        item = known[key]
        try:
            converted = value_of(value, item)
        except TypeError:
            problems.append(f"{label}{key}: {value!r} is not of type {item.type_name}")
            continue
        problems += [f"{label}{text}" for text in find_problems(item, converted, f"{key}:")]
        (settings if key in _SETTING_KEYS else facts)[key] = converted
    for name in facts.get("names", ()):
        if not all(part.strip(" .") for part in name.split("/")):
            problems.append(f"{label}names: {name!r} is not the end of a folder's path; write it like family/name")
    if not facts.get("names"):
        problems.append(f'{label}names: missing; list the data sets\' folders, such as ["family/name"]')
    task, metric = facts.get("task", "classes"), facts.get("metric")
    if metric and metric not in METRICS.get(task, (metric,)):
        problems.append(
            f"{label}metric: {metric} is not a metric of task {task}; choose one of {', '.join(METRICS[task])}"
        )
    if task == "regression" and "classes" in facts:
        problems.append(f"{label}classes: task regression has no classes; remove one of the two keys")
    return SuiteSets(SetFacts(**facts), SetSettings(**settings)) if len(problems) == count else None


_SETTING_KEYS = tuple(item.name for item in fields(SetSettings))


def entry_keys() -> dict[str, Setting]:
    """Return the allowed keys of `[[data_sets]]`, with their types and limits."""
    finetune = settings_of(FinetuneSettings)
    return {**settings_of(SetFacts), **{name: finetune[name] for name in _SETTING_KEYS}}


def _repeated_names(suite: Suite) -> Iterator[str]:
    """Yield a message for each name that occurs twice, or that another name with wildcards matches."""
    names = [(number, name) for number, sets in enumerate(suite.sets, 1) for name in sets.facts.names]
    for index, (number, name) in enumerate(names):
        for other_index, (other_number, other) in enumerate(names):
            twice = other_index > index and name == other
            if twice or (name != other and not is_pattern(name) and _matches(name.split("/"), other)):
                yield (
                    f"[[data_sets]] number {number}: names: {name} is also matched by {other} of number "
                    f"{other_number}; name each data set once"
                )


def _mixed_families(suite: Suite) -> Iterator[str]:
    """Yield a message for each table whose family has another metric in an earlier table."""
    metrics: dict[str, str] = {}
    for number, sets in enumerate(suite.sets, 1):
        for family in dict.fromkeys(map(sets.family, sets.facts.names)):
            if metrics.setdefault(family, sets.metric) != sets.metric:
                yield (
                    f"[[data_sets]] number {number}: metric: family {family} has {metrics[family]} in an earlier "
                    "table; a family needs one metric"
                )


def _published_problems(published: Any, suite: Suite) -> Iterator[str]:
    if not isinstance(published, dict) or not all(isinstance(scores, dict) for scores in published.values()):
        yield 'published: must be tables like [published."NAME OF THE METHOD"]'
        return
    for method, scores in published.items():
        for family, score in scores.items():
            label = f"[published.{method!r}]: {family}"
            if family not in suite.families:
                yield f"{label}: no family of data sets without wildcards{did_you_mean(family, suite.families)}"
            elif isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                yield f"{label}: {score!r} is not a number"
    if published and not suite.source:
        yield "source: missing; name the source of the published scores"
