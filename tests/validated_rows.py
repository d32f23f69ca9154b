"""Rows of metrics.jsonl with validations, and run folders made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HIDDEN = ("1", "3", "5", "9")


def validation(
    bits: float | None = 1.84,
    *,
    markov: float = 1.93,
    loss: float = 6.5,
    base_accuracy: float | None = 0.7,
    half_width: float | None = None,
) -> dict[str, Any]:
    """Return a validation with `bits` at 5 hidden bases; None leaves out all keys that came with bits per base.

    With `half_width`, all intervals have it; runs of earlier releases have none.

    Order 8 is the Markov line, with `markov` bits at 5 hidden bases. At 9 hidden bases order 5 is better.
    """
    found: dict[str, Any] = {
        f"span_{span}": {"loss": loss + 0.1 * (span - 6), "masked_accuracy": 0.1, "base_accuracy": base_accuracy}
        for span in (6, 8, 10)
    }
    if bits is None:
        return found
    shifts = dict(zip(HIDDEN, (-0.2, -0.1, 0.0, 0.05), strict=True))
    orders = {
        "2": dict.fromkeys(HIDDEN, markov + 0.05),
        "8": {hidden: markov + 0.4 * shift for hidden, shift in shifts.items()},
        "5": dict.fromkeys(HIDDEN, markov + 0.01),
    }
    if half_width is not None:
        found["bits_half_width"] = dict.fromkeys(HIDDEN, half_width)
        found["markov_half_width"] = {order: dict.fromkeys(HIDDEN, half_width) for order in orders}
    return found | {
        "bits_per_base": {hidden: bits + shift for hidden, shift in shifts.items()},
        "markov": orders,
        "composition": dict.fromkeys(HIDDEN, 1.987),
        "kmer_frequencies": 7.353,
    }


def rows_of(validations: Sequence[dict[str, Any] | None], every: int = 100, epoch: float = 2.0) -> list[dict[str, Any]]:
    """Return one row per entry, after `every`, 2 * `every` … steps; None is a logged step without a validation."""
    rows = []
    for number, found in enumerate(validations, 1):
        step = number * every - 1
        row = {"step": step, "loss": 7.0, "token_loss": 7.0, "masked_accuracy": 0.1, "lr": 1e-3, "phase": 1}
        row |= {"max_span": 6, "consumed_tokens": 100 * (step + 1), "epoch": epoch}
        rows.append(row if found is None else row | {"validation": found})
    return rows


def write_run(folder: Path, rows: Sequence[dict[str, Any]], *, k: int | None = 6, config: str = "") -> Path:
    """Write a run folder: metrics.jsonl, config.toml, and the manifest of its data."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_text(json.dumps({"tokenizer": {"kind": "kmer", "k": k}}))
    data = f'[data]\npath = ["{folder / "data"}"]\noverlap = true\n'
    (folder / "config.toml").write_text(config or data + '[model]\nloss = "token"\n[validation]\nevery = 100\n')
    return folder
