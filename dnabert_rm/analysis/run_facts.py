"""What a report says of runs in numbers and words: results, speed, checkpoints, settings that differ. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnabert_rm.analysis.run_records import Run
from dnabert_rm.checkpoint.run_folder import complete_steps, saved_steps, step_folder

LAST_ROWS = 20
"""Logged steps at the end of a run that its final loss is the mean of."""
SPEED = {
    "tokens a second, all ranks": ("tokens_per_second", "{:,.0f}"),
    "TFLOP/s a rank": ("tflops_per_rank", "{:.3g}"),
    "share of the hardware's peak (MFU)": ("mfu", "{:.1%}"),
    "share of a step that waits for data": ("data_wait", "{:.1%}"),
    "seconds a checkpoint": ("save_seconds", "{:.3g}"),
    "seconds a validation": ("validation_seconds", "{:.3g}"),
}
"""Rows of the table of speed: key in metrics.jsonl and format."""


def last_mean(run: Run, name: str) -> float | None:
    """Mean of a recorded number over the run's last `LAST_ROWS` logged steps."""
    values = run.curve(name).values[-LAST_ROWS:]
    return float(values.mean()) if len(values) else None


def median(run: Run, name: str) -> float | None:
    """Median of a recorded number over all logged steps that have it."""
    values = run.curve(name).values
    return statistics.median(values.tolist()) if len(values) else None


def number(value: float | None, form: str) -> str | None:
    """A number in a format; None stays None."""
    return None if value is None else form.format(value)


def bytes_text(count: int) -> str:
    """A size in the unit that fits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def model_text(run: Run) -> str | None:
    """ "bert, 4 layers × 256, 4 heads"."""
    model = run.config.get("model")
    if not model:
        return None
    begun = f", from {model['init_from']}" if model.get("init_from") else ""
    layers, width, heads = (model.get(name) for name in ("num_layers", "hidden_size", "num_heads"))
    return f"{model.get('architecture')}, {layers} layers × {width}, {heads} heads{begun}"


def masking_text(run: Run) -> str | None:
    """ "randommask, spans up to 6, 8, 10"."""
    policy = run.setting("masking", "policy")
    if policy is None:
        return None
    if run.phases:
        return f"{policy}, spans up to {', '.join(str(phase.max_span) for phase in run.phases)}"
    spans = sorted({row["max_span"] for row in run.rows if "max_span" in row})
    return f"{policy}, span {', '.join(map(str, spans))}" if policy == "fixed" and spans else str(policy)


def hardware_text(run: Run) -> str | None:
    """ "2 ranks on 8 × NVIDIA H100"; GPUs are those of the first node."""
    found = run.environment
    if not found:
        return None
    gpus = found.get("gpus") or []
    kinds = ", ".join(f"{gpus.count(kind)} × {kind}" for kind in dict.fromkeys(gpus))
    ranks = found.get("world_size")
    where = f"{kinds} in the first node" if gpus else f"the CPU ({found.get('cpus')} cores)"
    return f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {where}"


def summary_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """The table at the top: a row a fact, a column a run."""
    rows = {run.name: run.rows[-1] for run in runs}
    facts: dict[str, list[Any]] = {
        "model": [model_text(run) for run in runs],
        "masking": [masking_text(run) for run in runs],
        "data": [", ".join(map(str, run.setting("data", "path") or [])) or None for run in runs],
        "window, global batch": [_batch_text(run) for run in runs],
        "steps done": [f"{rows[run.name]['step'] + 1:,} of {run.setting('train', 'steps') or '?':,}"
                       if run.config else f"{rows[run.name]['step'] + 1:,}" for run in runs],
        "tokens consumed": [number(rows[run.name].get("consumed_tokens"), "{:,}") for run in runs],
        "epochs": [number(rows[run.name].get("epoch"), "{:.2f}") for run in runs],
        "training loss at the end": [number(last_mean(run, "loss"), "{:.4f}") for run in runs],
        "masked accuracy at the end": [number(last_mean(run, "masked_accuracy"), "{:.4f}") for run in runs],
        "tokens a second (median)": [number(median(run, "tokens_per_second"), "{:,.0f}") for run in runs],
        "hardware": [hardware_text(run) for run in runs],
        "seed": [run.setting("train", "seed") for run in runs],
        "commit": [short_commit(run.environment.get("commit")) for run in runs],
    }  # fmt: skip
    return [[name, *values] for name, values in facts.items()]


def short_commit(commit: str | None) -> str | None:
    """The first 12 digits of a commit, with its "+changes"."""
    if not commit:
        return None
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def _batch_text(run: Run) -> str | None:
    if not run.config:
        return None
    return f"{run.setting('data', 'window')} tokens × {run.setting('train', 'global_batch')} windows"


def held_out_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Held-out loss at the last validation: a row a span, a column a run."""
    names = dict.fromkeys(name for run in runs for name in run.held_out_names)
    rows = []
    for name in names:
        found = [run.curve("validation", name, "loss") for run in runs]
        cells = [f"{curve.values[-1]:.4f} (step {curve.steps[-1]:,})" if len(curve.values) else None for curve in found]
        rows.append([name.replace("_", " "), *cells])
    return rows


def phase_rows(run: Run) -> list[list[Any]]:
    """A row a phase: its number, largest span, steps, and the loss around its beginning and at its end."""
    losses, rows = run.curve("loss"), []
    for phase in run.phases:
        own = losses.values[(losses.steps >= phase.first) & (losses.steps < phase.end)]
        width = max(1, min(LAST_ROWS, len(own) // 2))
        ends = [f"{part.mean():.4f}" for part in (own[:width], own[-width:])] if len(own) else [None, None]
        steps = f"{phase.first:,} to {phase.end - 1:,}"
        rows.append([phase.number, phase.max_span, steps, *ends, width if len(own) else None])
    return rows


def speed_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Medians over the logged steps: a row a quantity, a column a run."""
    return [[title, *(number(median(run, key), form) for run in runs)] for title, (key, form) in SPEED.items()]


def checkpoint_rows(folder: Path) -> list[list[Any]]:
    """A row a checkpoint: step, size, whether it was written to the end."""
    complete = set(complete_steps(folder))
    return [
        [f"{step:,}", bytes_text(_size(step_folder(folder, step))), "complete" if step in complete else "unfinished"]
        for step in saved_steps(folder)
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def setting_rows(contents: Sequence[dict[str, Any]]) -> tuple[list[list[Any]], list[int]]:
    """Nested settings of several runs as rows of dotted name and values; and the numbers of rows that differ."""
    flat = [_flat(content) for content in contents]
    names = dict.fromkeys(name for own in flat for name in own)
    rows = [[name, *(own.get(name) for own in flat)] for name in names]
    return rows, [index for index, (_, *values) in enumerate(rows) if len(set(values)) > 1]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found[prefix + name] = " ".join(map(str, value)) or "(none)"
        elif isinstance(value, bool):
            found[prefix + name] = str(value).lower()
        else:
            found[prefix + name] = str(value) if value not in ("", None) else "(none)"
    return found
