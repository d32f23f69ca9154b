"""Rows for the tables of the report: results, speed, checkpoints and settings. Torch-free."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnabert_rm.analysis.run_records import Run
from dnabert_rm.checkpoint.run_folder import complete_steps, saved_steps, step_folder
from dnabert_rm.config import RunConfig
from dnabert_rm.train.run_verdict import judge_run
from dnabert_rm.train.validation_record import LAST_ROWS, bits_table, curve_text, last_rows, model_bits, validation_of

SPEED = {
    "tokens per second, all ranks": ("tokens_per_second", "{:,.0f}"),
    "TFLOP/s per rank": ("tflops_per_rank", "{:.3g}"),
    "share of the hardware's peak (MFU)": ("mfu", "{:.1%}"),
    "share of a step spent waiting for data": ("data_wait", "{:.1%}"),
    "seconds per checkpoint": ("save_seconds", "{:.3g}"),
    "seconds per validation": ("validation_seconds", "{:.3g}"),
}
"""Rows of the speed table: title, key in metrics.jsonl, and number format."""


def last_mean(run: Run, name: str) -> float | None:
    """Return the mean of a metric over the last logged steps of the last phase, or None if no value was logged."""
    values = [row[name] for row in last_rows(run.rows) if row.get(name) is not None]
    return statistics.fmean(values) if values else None


def median(run: Run, name: str) -> float | None:
    """Return the median of all logged values of a metric, or None if no value was logged."""
    values = run.curve(name).values
    return statistics.median(values.tolist()) if len(values) else None


def number(value: float | None, form: str) -> str | None:
    """Return `form.format(value)`, or None if `value` is None."""
    return None if value is None else form.format(value)


def bytes_text(count: int) -> str:
    """Format a number of bytes in GB, MB, kB or bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def model_text(run: Run) -> str | None:
    """Describe the model, e.g. "bert, 4 layers × 256, 4 heads". Return None if the run has no configuration."""
    model = run.config.get("model")
    if not model:
        return None
    initial = f", from {model['init_from']}" if model.get("init_from") else ""
    layers, width, heads = (model.get(name) for name in ("num_layers", "hidden_size", "num_heads"))
    return f"{model.get('architecture')}, {layers} layers × {width}, {heads} heads{initial}"


def masking_text(run: Run) -> str | None:
    """Describe the masking, e.g. "randommask, spans up to 6, 8, 10". Return None if the run has no configuration."""
    policy = run.setting("masking", "policy")
    if policy is None:
        return None
    if run.phases:
        return f"{policy}, spans up to {', '.join(str(phase.max_span) for phase in run.phases)}"
    spans = sorted({row["max_span"] for row in run.rows if "max_span" in row})
    return f"{policy}, span {', '.join(map(str, spans))}" if policy == "fixed" and spans else str(policy)


def hardware_text(run: Run) -> str | None:
    """Return the number of ranks and the hardware of the first node, e.g. "2 ranks on the CPU (8 cores)".

    Return None if the run has no environment.json.
    """
    environment = run.environment
    if not environment:
        return None
    gpus = environment.get("gpus") or []
    kinds = ", ".join(f"{gpus.count(kind)} × {kind}" for kind in dict.fromkeys(gpus))
    ranks = environment.get("world_size")
    hardware = f"{kinds} in the first node" if gpus else f"the CPU ({environment.get('cpus')} cores)"
    return f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {hardware}"


def summary_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Return the rows of the summary table. Each row is a name, e.g. "seed", followed by one value per run."""
    last = [run.rows[-1] for run in runs]
    facts: dict[str, list[Any]] = {
        "model": [model_text(run) for run in runs],
        "masking": [masking_text(run) for run in runs],
        "data": [", ".join(map(str, run.setting("data", "path") or [])) or None for run in runs],
        "window, global batch": [_batch_text(run) for run in runs],
        "steps done": [_steps_text(run) for run in runs],
        "tokens consumed": [number(row.get("consumed_tokens"), "{:,}") for row in last],
        "epochs": [number(row.get("epoch"), "{:.2f}") for row in last],
        "training loss at the end": [number(last_mean(run, "loss"), "{:.4f}") for run in runs],
        "masked accuracy at the end": [number(last_mean(run, "masked_accuracy"), "{:.4f}") for run in runs],
        "tokens per second (median)": [number(median(run, "tokens_per_second"), "{:,.0f}") for run in runs],
        "hardware": [hardware_text(run) for run in runs],
        "seed": [run.setting("train", "seed") for run in runs],
        "commit": [short_commit(run.environment.get("commit")) for run in runs],
    }
    return [[name, *values] for name, values in facts.items()]


def _batch_text(run: Run) -> str | None:
    if not run.config:
        return None
    return f"{run.setting('data', 'window')} tokens × {run.setting('train', 'global_batch')} windows"


def _steps_text(run: Run) -> str:
    done = f"{run.rows[-1]['step'] + 1:,}"
    total = run.setting("train", "steps")
    return f"{done} of {total:,}" if total else done


def short_commit(commit: str | None) -> str | None:
    """Return a commit hash shortened to 12 digits. The suffix "+changes" for modified files is kept."""
    if not commit:
        return None
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def held_out_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Return the held-out losses of the last validation. Each row is a mask span, followed by one loss per run."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.held_out_names):
        curves = [run.curve("validation", name, "loss") for run in runs]
        cells = [
            f"{curve.values[-1]:.4f} (after {curve.steps[-1] + 1:,} steps)" if len(curve.values) else None
            for curve in curves
        ]
        rows.append([curve_text(name), *cells])
    return rows


def verdict_text(run: Run) -> str:
    """Return one or two sentences on how good a run is and what to try."""
    return judge_run(run.rows, run.first_validation).text


def last_bits_table(run: Run) -> tuple[list[str], list[list[str | None]]]:
    """Return the titles and rows of the bits per base of the last validation. Empty if they were not measured."""
    return bits_table(next((found for row in reversed(run.rows) if model_bits(found := validation_of(row))), {}))


def phase_rows(run: Run) -> list[list[Any]]:
    """Return one row per masking phase of a run.

    Cells: phase number, largest mask span, steps, mean loss at the start, mean loss at the end, number of logged steps
    per mean.
    """
    losses = run.curve("loss")
    rows = []
    for phase in run.phases:
        values = losses.values[(losses.steps >= phase.first) & (losses.steps < phase.end)]
        width = max(1, min(LAST_ROWS, len(values) // 2))
        ends = [f"{part.mean():.4f}" for part in (values[:width], values[-width:])] if len(values) else [None, None]
        steps = f"{phase.first:,} to {phase.end - 1:,}"
        rows.append([phase.number, phase.max_span, steps, *ends, width if len(values) else None])
    return rows


def speed_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Return the rows of the speed table. Each row is the name of a quantity, followed by one median per run."""
    return [[title, *(number(median(run, key), form) for run in runs)] for title, (key, form) in SPEED.items()]


def checkpoint_rows(folder: Path) -> list[list[Any]]:
    """Return one row per checkpoint: step, size, and "complete" or "unfinished"."""
    complete = set(complete_steps(folder))
    return [
        [f"{step:,}", bytes_text(_size(step_folder(folder, step))), "complete" if step in complete else "unfinished"]
        for step in saved_steps(folder)
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def setting_rows(contents: Sequence[dict[str, Any]]) -> tuple[list[list[Any]], int]:
    """Return a table of the settings of several runs, and the number of settings that differ between runs.

    Each row is a dotted name, e.g. "train.seed", followed by one value per run. Settings that differ come first.
    """
    flat = [_flat(content) for content in contents]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [[name, *(settings.get(name) for settings in flat)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return [*differing, *(row for row in rows if row not in differing)], len(differing)


def split_defaults(rows: list[list[Any]]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Divide rows of `setting_rows` into settings that some run has changed, and settings with their default."""
    defaults = _flat(dataclasses.asdict(RunConfig()))
    changed = [row for row in rows if any(value != defaults.get(row[0]) for value in row[1:])]
    return changed, [row for row in rows if row not in changed]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    settings: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            settings |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            settings[prefix + name] = " ".join(map(str, value)) or "(none)"
        elif isinstance(value, bool):
            settings[prefix + name] = str(value).lower()
        else:
            settings[prefix + name] = str(value) if value not in ("", None) else "(none)"
    return settings
