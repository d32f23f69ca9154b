"""Comparison of a run with reference runs, which differ from each other only in their seeds. Torch-free."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dnabert_rm.analysis.run_records import Run, read_run
from dnabert_rm.config import free_on_resume
from dnabert_rm.config.run_config import run_settings
from dnabert_rm.train.validation_record import (
    COMPOSITION,
    MARKOV,
    bases_text,
    compared_bases,
    curve_text,
    model_bits,
    narrowest_curve,
    validation_of,
)
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.statistics import mean_and_half_width

SHIPPED = resources.files("dnabert_rm") / "reference_runs"
"""Folder of the shipped references. Each has one run folder per seed, with the validated rows of metrics.jsonl."""
RESULT_SETTINGS = frozenset(run_settings()) - (
    free_on_resume() - {"model.initial_weights", "model.init_from", "model.float8", "train.global_batch"}
    | {"train.seed"}
)
"""Settings that change what a run learns, apart from the seed and the data."""
LINE_TOLERANCE = 1e-6
"""Largest difference in bits of a Markov line that rounding can cause."""


@dataclass(frozen=True)
class Measure:
    """One measure after `steps` completed steps: the run's value, and those of the reference runs."""

    steps: int
    name: str
    """For example "bits per base at 5 hidden bases" or "token loss, span 6"."""
    value: float
    mean: float
    """Mean of the reference runs."""
    half_width: float | None
    """A run with another seed is within `mean` ± `half_width` with a probability of 95 %. None for a single reference
    run. Source: the prediction interval of a normal variable, from Student's t distribution."""


@dataclass(frozen=True)
class Comparison:
    """A run beside reference runs. `measures` are in order of their steps."""

    reference: str
    seeds: tuple[int | None, ...]
    changed: tuple[str, ...]
    """Settings that differ, e.g. "optim.lr is 0.001, reference 0.002"."""
    compared: str
    """Name of the measure that decides: bits per base, or the token loss of runs without bits."""
    measures: tuple[Measure, ...]
    same_seed_difference: float | None
    """Largest difference of any measure from the reference run with the same seed and settings; None without one."""

    @property
    def curve(self) -> list[Measure]:
        """The deciding measure at each common validation."""
        return [measure for measure in self.measures if measure.name == self.compared]

    @property
    def last(self) -> list[Measure]:
        """All measures at the last common validation."""
        return [measure for measure in self.measures if measure.steps == self.measures[-1].steps]

    @property
    def is_worse(self) -> bool:
        """Whether the run's last deciding measure is above the range of the reference, or NaN. Lower is better."""
        last = self.curve[-1]
        return last.half_width is not None and not last.value <= last.mean + last.half_width

    @property
    def text(self) -> str:
        """The result in one or two sentences."""
        last = self.curve[-1]
        text = f"After {last.steps:,} steps ({last.name}): {last.value:.4f}, reference {range_text(last)}: "
        if last.half_width is None:
            text += "one reference run has no range; pass runs with several seeds"
        elif abs(last.value - last.mean) <= last.half_width:
            text += "within the range that another seed explains"
        else:
            text += f"{'worse' if self.is_worse else 'better'} than another seed explains"
        if self.same_seed_difference is not None:
            text += f". Largest difference from the reference run with the same seed: {self.same_seed_difference:.2g}"
        return text + "."


def reference_names() -> list[str]:
    """Return the names of the shipped references."""
    return sorted(item.name for item in SHIPPED.iterdir() if item.is_dir())


def read_reference(words: Sequence[str]) -> tuple[str, list[Run]]:
    """Return the name and the runs of a reference: the name of a shipped one, or run folders.

    Raises `ConfigError` if a single word is neither, and `DataError` if a run can't be read.
    """
    if len(words) == 1 and words[0] in reference_names():
        folders = sorted(Path(str(SHIPPED / words[0])).iterdir())
        return words[0], [read_run(folder) for folder in folders]
    if len(words) == 1 and not Path(words[0]).exists():
        raise ConfigError(
            f"--reference {words[0]}: neither a run folder nor a shipped reference; "
            f"choose {' or '.join(reference_names())}, or pass run folders"
        )
    return " ".join(words), [read_run(word) for word in words]


def compare_run(run: Run, name: str, references: Sequence[Run]) -> Comparison:
    """Compare a run with reference runs at the steps after which all of them validated.

    Raises `DataError` if there is no such step, if the validations are of other data or have nothing in common, or if
    the reference runs differ from each other in more than their seeds.
    """
    for reference in references[1:]:
        if differences := list(_changes(reference, references[0])):
            raise DataError(
                f"{reference.folder}: {differences[0]}; pass reference runs that differ only in their seeds"
            )
    rows = _validated(run)
    reference_rows = [_validated(reference) for reference in references]
    steps = sorted(set(rows).intersection(*reference_rows))
    if not steps:
        known = ", ".join(map(str, sorted(set(reference_rows[0]).intersection(*reference_rows)))) or "none"
        raise DataError(
            f"{run.folder}: no validation at a step at which the reference has one ({known}); "
            "set --validation.every so that one coincides"
        )
    for reference, found in zip(references, reference_rows, strict=True):
        _check_same_data(run, rows[steps[-1]], reference, found[steps[-1]])
    changed = tuple(_changes(run, references[0]))
    measures = [
        measure for step in steps for measure in _measures(step, rows[step], [found[step] for found in reference_rows])
    ]
    compared = _compared_name(rows[steps[-1]])
    if compared not in {measure.name for measure in measures if measure.steps == steps[-1]}:
        raise DataError(f"{run.folder}: the reference has no {compared}; pass another --reference")
    return Comparison(
        reference=name,
        seeds=tuple(reference.setting("train", "seed") for reference in references),
        changed=changed,
        compared=compared,
        measures=tuple(measures),
        same_seed_difference=None if changed else _same_seed_difference(run, references, rows, reference_rows, steps),
    )


def _validated(run: Run) -> dict[int, Mapping[str, Any]]:
    """Return the validations of a run, keyed by the number of completed steps."""
    return {row["step"] + 1: validation_of(row) for row in run.rows if validation_of(row)}


def _changes(run: Run, reference: Run) -> Iterator[str]:
    """Yield the settings that differ and change the result. A run without config.toml has no settings to compare.

    A setting that is newer than a run has its default there.
    """
    if not (run.config and reference.config):
        return
    # Lists, as in config.toml.
    defaults = {name: list(item.default) if item.is_list else item.default for name, item in run_settings().items()}
    for name in sorted(RESULT_SETTINGS):
        section, key = name.split(".")
        ours, theirs = (one.setting(section, key, defaults[name]) for one in (run, reference))
        if ours != theirs:
            yield f"{name} is {ours}, reference {theirs}"


def _check_same_data(run: Run, validation: Mapping[str, Any], reference: Run, expected: Mapping[str, Any]) -> None:
    """Raise `DataError` if the validations have other Markov or composition lines.

    The lines depend only on the training data and on the hidden stretches, so they identify both.
    """
    ours, theirs = (dict(_lines(one)) for one in (validation, expected))
    common = ours.keys() & theirs.keys()
    has_bits = bool(model_bits(validation)) and bool(model_bits(expected))
    if any(abs(ours[line] - theirs[line]) > LINE_TOLERANCE for line in common) or (has_bits and not common):
        raise DataError(
            f"{run.folder}: has other training or held-out data than {reference.folder} (their lines of composition "
            "and Markov chains differ); build the data as docs/results.md says, or pass another --reference"
        )


def _lines(validation: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield the bits of each composition and Markov line, keyed by its name and the number of hidden bases."""
    lines = {COMPOSITION: validation.get(COMPOSITION) or {}, **(validation.get(MARKOV) or {})}
    for line, values in lines.items():
        yield from (((line, hidden), bits) for hidden, bits in values.items() if bits is not None)


def _values(validation: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of one validation, keyed by name. Bits per base are last."""
    values = {}
    if curve := narrowest_curve(validation):
        name = curve_text(curve[0])
        values[f"token loss, {name}"] = curve[1]["loss"]
        if curve[1].get("base_accuracy") is not None:
            values[f"base accuracy, {name}"] = curve[1]["base_accuracy"]
    return values | {_bits_name(hidden): bits for hidden, bits in model_bits(validation).items()}


def _bits_name(hidden: int) -> str:
    return f"bits per base at {bases_text(hidden)}"


def _compared_name(validation: Mapping[str, Any]) -> str:
    hidden = compared_bases(validation)
    return next(iter(_values(validation))) if hidden is None else _bits_name(hidden)


def _measures(steps: int, validation: Mapping[str, Any], references: Sequence[Mapping[str, Any]]) -> Iterator[Measure]:
    expected = [_values(reference) for reference in references]
    for name, value in _values(validation).items():
        if all(name in one for one in expected):
            values = [one[name] for one in expected]
            yield Measure(steps, name, value, statistics.fmean(values), half_width(values))


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the 95 % prediction interval for one more value, or None if there is only one value."""
    _, half = mean_and_half_width(values)
    if half is None:
        return None
    # The interval of the mean has the factor sqrt(1 / n), that of another value sqrt(1 + 1 / n).
    return half * math.sqrt(len(values) + 1)


def _same_seed_difference(
    run: Run,
    references: Sequence[Run],
    rows: Mapping[int, Mapping[str, Any]],
    reference_rows: Sequence[Mapping[int, Mapping[str, Any]]],
    steps: Sequence[int],
) -> float | None:
    """Return the largest difference of any measure from the reference run with the same seed; None without one."""
    for reference, expected in zip(references, reference_rows, strict=True):
        if reference.setting("train", "seed") == run.setting("train", "seed") is not None:
            pairs = [(_values(rows[step]), _values(expected[step])) for step in steps]
            return max(abs(ours[name] - theirs[name]) for ours, theirs in pairs for name in ours.keys() & theirs.keys())
    return None


def range_text(measure: Measure) -> str:
    """Return the reference's mean and range, e.g. "1.9402 ± 0.0021"."""
    return f"{measure.mean:.4f}" + ("" if measure.half_width is None else f" ± {measure.half_width:.4f}")
