"""The same fine-tuning with several seeds: a folder each, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.finetune.finetune_model import finetune
from dnabert_rm.finetune.finetune_settings import MODEL_FOLDER, SCORES_FILE, FinetuneSettings
from dnabert_rm.finetune.output_folder import cell, clear_output
from dnabert_rm.finetune.table_splits import notice
from dnabert_rm.utils.errors import ConfigError, is_first_rank
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.statistics import mean_and_half_width

OWN = ("output", "overwrite", "seed", "seeds")
"""Settings that say nothing of what a seed's result is."""


def finetune_seeds(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune with each of `settings.seeds` in `output/seed_S`; finished ones of the same settings are kept.

    Writes `output/scores.json`, that of one seed with means in place of `metrics` (see `together`), and returns it.
    Raises what `finetune` raises.
    """
    if not settings.overwrite and (settings.output.is_file() or (settings.output / MODEL_FOLDER).exists()):
        raise ConfigError(f"--output {settings.output}: is a file, or holds a run without --seeds; name another folder")
    seeds = settings.seeds or (settings.seed,)
    each = [replace(settings, seed=seed, seeds=None, output=settings.output / f"seed_{seed}") for seed in seeds]
    kept = [None if settings.overwrite else finished(one) for one in each]
    results = []
    for one, found in zip(each, kept, strict=True):
        notice(f"seed {one.seed}: " + ("done already" if found else f"into {one.output}"))
        results.append(found or finetune(one))
    scores = together(results, seeds) | {"settings": settings.to_json()}
    if is_first_rank():
        clear_output(settings)
        write_text(settings.output / SCORES_FILE, json.dumps(scores, indent=2) + "\n")
    return scores


def finished(settings: FinetuneSettings) -> dict[str, Any] | None:
    """The scores of a seed that is done; `ConfigError` where its folder holds those of other settings."""
    path = settings.output / SCORES_FILE
    if not path.exists():
        return None
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
        found, wanted = ({k: v for k, v in given.items() if k not in OWN} for given in
                         (scores["settings"], json.loads(json.dumps(settings.to_json()))))  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: is not a record of scores; remove it or pass --overwrite") from None
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise ConfigError(
            f"{path}: was made with other settings ({', '.join(differing)}); name another --output or pass --overwrite"
        )
    return scores


def together(results: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One record of several: `metrics` are means over the seeds, `metrics_interval_95` [low, high] of each mean.

    `metrics_by_seed` lists the values in the order of `seeds`. What is undefined for one seed is None for all, and so
    is the interval of a single seed.
    """
    first = results[0]
    kept = ("data_set", "task", "classes", "labels", "splits", "weights", "best_metric", "versions")
    by_seed = {
        split: {name: [result["metrics"][split][name] for result in results] for name in metrics}
        for split, metrics in first["metrics"].items()
    }
    return {name: first[name] for name in kept if name in first} | {
        "metrics": {split: {name: mean(values) for name, values in found.items()} for split, found in by_seed.items()},
        "metrics_interval_95": {
            split: {name: interval(values) for name, values in found.items()} for split, found in by_seed.items()
        },
        "metrics_by_seed": by_seed,
        "seed": seeds[0],
        "seeds": list(seeds),
        "best_step": [result["best_step"] for result in results],
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean, None where a value is."""
    return None if None in values else float(np.mean(np.array(values, dtype=float)))


def interval(values: Sequence[float | None]) -> list[float] | None:
    """[low, high] that holds the mean of seeds like these with 95 % confidence: Student's t, n - 1 degrees of freedom.

    None for fewer than two values.
    """
    if None in values or len(values) < 2:
        return None
    middle, half = mean_and_half_width([value for value in values if value is not None])
    assert half is not None
    return [middle - half, middle + half]


def seeds_table(scores: dict[str, Any]) -> str:
    """The means and intervals as a few lines of text: one row a split and metric."""
    seeds = ", ".join(map(str, scores["seeds"]))
    width = max(len(name) for name in scores["metrics"]["test"])
    lines = [f"{scores['data_set']}, {scores['weights']} weights, seeds {seeds}"]
    lines.append(f"split  {'metric':<{width}}     mean  95 % interval")
    for split, metrics in scores["metrics"].items():
        for name, value in metrics.items():
            bounds = scores["metrics_interval_95"][split][name]
            shown = f"{cell(bounds[0])} to {cell(bounds[1])}" if bounds else "-"
            lines.append(f"{split:<6} {name:<{width}} {cell(value):>8}  {shown}")
    return "\n".join(lines)
