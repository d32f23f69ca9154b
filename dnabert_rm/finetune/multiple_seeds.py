"""Repeat a fine-tuning run with several seeds, each in its own folder, and aggregate the scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.finetune_settings import MODEL_FOLDER, SCORES_FILE, FinetuneSettings
from dnabert_rm.finetune.fingerprints import changed_inputs, fingerprints_of
from dnabert_rm.finetune.output_folder import check_inputs, clear_output, format_score
from dnabert_rm.finetune.table_splits import notice
from dnabert_rm.utils.errors import ConfigError, is_first_rank
from dnabert_rm.utils.files import read_json, write_text
from dnabert_rm.utils.statistics import mean_and_half_width

_IGNORED_SETTINGS = ("output", "overwrite", "seed", "seeds")
"""Settings that may differ between a finished run and the present run."""


def finetune_seeds(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune once with each seed S of `settings.seeds`, in the folder `output/seed_S`.

    Without `overwrite`, runs that already finished with the same settings are not repeated. The aggregated scores
    are written to `output/scores.json` and returned. Raises the same errors as `finetune`.
    """
    if not settings.overwrite and (settings.output.is_file() or (settings.output / MODEL_FOLDER).exists()):
        raise ConfigError(
            f"--output {settings.output}: is a file, or contains a model from finetune without --seeds;"
            " choose another folder"
        )
    seeds = settings.seeds or (settings.seed,)
    runs = [replace(settings, seed=seed, seeds=None, output=settings.output / f"seed_{seed}") for seed in seeds]
    for one in (settings, *runs):
        check_inputs(one)
    fingerprints = fingerprints_of(settings)
    finished = [None if settings.overwrite else read_finished(run, fingerprints) for run in runs]
    results = []
    for run, scores in zip(runs, finished, strict=True):
        notice(f"seed {run.seed}: " + ("already finished" if scores else f"into {run.output}"))
        results.append(scores or finetune(run))
    scores = aggregate(results, seeds) | {"settings": settings.to_json()}
    if is_first_rank():
        clear_output(settings)
        write_text(settings.output / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    return scores


def read_finished(settings: FinetuneSettings, fingerprints: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the scores of a finished run, or None if the run has not finished.

    `fingerprints` identifies the current model and tables (see `fingerprints_of`). Raises `ConfigError` if the
    finished run used different settings, model files or tables. Raises `ConfigError` also if `scores.json` of the
    finished run lacks settings or fingerprints.
    """
    path = settings.output / SCORES_FILE
    if not path.exists():
        return None
    advice = "remove the file or pass --overwrite"
    scores = read_json(path, error=ConfigError, advice=advice)
    found = scores.get("settings")
    if not isinstance(found, dict):
        raise ConfigError(f'{path}: has no entry "settings"; {advice}')
    wanted = json.loads(json.dumps(settings.to_json()))  # tuples become lists, as in the file
    names = (wanted.keys() | found.keys()) - set(_IGNORED_SETTINGS)
    differing = sorted(name for name in names if wanted.get(name) != found.get(name))
    if differing:
        raise ConfigError(
            f"{path}: is from a run with different settings ({', '.join(differing)});"
            " choose another --output or pass --overwrite"
        )
    if any(not isinstance(scores.get(name), type(value)) for name, value in fingerprints.items()):
        raise ConfigError(
            f"{path}: has no checksums of the model and the tables, so these inputs may have changed since the run;"
            " choose another --output or pass --overwrite"
        )
    if changed := changed_inputs(settings, scores, fingerprints):
        raise ConfigError(
            f"{path}: the content of {', '.join(changed)} has changed since this seed finished;"
            " choose another --output or pass --overwrite"
        )
    return scores


def aggregate(results: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Aggregate the scores of several seeds into the content of one `scores.json`.

    `results` holds the return value of `finetune` for each seed in `seeds`. The returned dictionary has these keys,
    among others:

    - `metrics`: mean of each metric over the seeds, or None if the metric is undefined for any seed.
    - `metrics_interval_95`: 95 % confidence interval [low, high] of each mean. An interval is None if the mean is None
      or there is only one seed.
    - `metrics_by_seed`: values of each metric, in the order of `seeds`.
    """
    first = results[0]
    common_keys = ["data_set", "task", "classes", "labels", "splits", "weights", "best_metric", "versions"]
    common_keys += ["model_sha256", "data_sha256"]
    by_seed = {
        split: {name: [result["metrics"][split][name] for result in results] for name in metrics}
        for split, metrics in first["metrics"].items()
    }
    return {name: first[name] for name in common_keys if name in first} | {
        "metrics": {
            split: {name: mean(values) for name, values in metrics.items()} for split, metrics in by_seed.items()
        },
        "metrics_interval_95": {
            split: {name: interval(values) for name, values in metrics.items()} for split, metrics in by_seed.items()
        },
        "metrics_by_seed": by_seed,
        "seed": seeds[0],
        "seeds": list(seeds),
        "best_step": [result["best_step"] for result in results],
    }


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of `values`, or None if any value is None."""
    return None if None in values else float(np.mean(np.array(values, dtype=float)))


def interval(values: Sequence[float | None]) -> list[float] | None:
    """Return the 95 % confidence interval [low, high] of the mean of n values.

    The interval uses Student's t distribution with n - 1 degrees of freedom.
    The result is None for fewer than two values, or if any value is None.
    """
    if None in values or len(values) < 2:
        return None
    center, half_width = mean_and_half_width([value for value in values if value is not None])
    assert half_width is not None
    return [center - half_width, center + half_width]


def seeds_table(scores: dict[str, Any]) -> str:
    """Format the result of `aggregate` as a text table of means and intervals, one row per split and metric."""
    seeds = ", ".join(map(str, scores["seeds"]))
    width = max(len(name) for name in scores["metrics"]["test"])
    lines = [f"{scores['data_set']}, {scores['weights']} weights, seeds {seeds}"]
    lines.append(f"split  {'metric':<{width}}     mean  95 % interval")
    for split, metrics in scores["metrics"].items():
        for name, value in metrics.items():
            bounds = scores["metrics_interval_95"][split][name]
            shown = f"{format_score(bounds[0])} to {format_score(bounds[1])}" if bounds else "-"
            lines.append(f"{split:<6} {name:<{width}} {format_score(value):>8}  {shown}")
    return "\n".join(lines)
