"""Validation results in a row of metrics.jsonl: bits per base, lines to compare them with, token losses. Torch-free.

A validated row has a key "validation", for example with two spans and one Markov order:

    {"span_6": {"loss": 7.1, "masked_accuracy": 0.01, "base_accuracy": 0.4}, "span_8": {…},
     "bits_per_base": {"1": 1.84, "5": 1.91}, "markov": {"8": {"1": 1.88, "5": 1.93}},
     "composition": {"1": 1.99, "5": 1.99}, "kmer_frequencies": 7.35,
     "bits_half_width": {"1": 0.01, "5": 0.006}, "markov_half_width": {"8": {"1": 0.005, "5": 0.003}}}

The inner keys "1" and "5" are numbers of hidden bases. `kmer_frequencies` is in nats per token, like the losses. The
half-widths are those of 95 % confidence intervals over the held-out regions: of the model's bits, and of its difference
from a Markov chain. Runs with BPE tokens, and runs of earlier releases, have only the losses at fixed spans.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAST_ROWS = 20
"""Largest number of logged steps whose mean is the loss at the end of a run or phase: on screen, in card and report."""
VALIDATION = "validation"
"""Key of the validation results in a metrics row."""
BITS, MARKOV, COMPOSITION, KMER_FREQUENCIES = "bits_per_base", "markov", "composition", "kmer_frequencies"
HALF_WIDTH, MARKOV_HALF_WIDTH = "bits_half_width", "markov_half_width"
NON_OVERLAPPING = "non_overlapping"
"""Key that is true if tokens don't overlap. Whole tokens are masked, so more bases are hidden than the key says, and
the Markov lines and k-mer frequencies are left out."""
GUESSING = "guessing"
GUESSING_BITS = 2.0
"""Bits per base of a model that gives each of the four bases the probability 1/4."""
COMPARED_BASES = 5
"""Number of hidden bases for which runs are compared, and for which the Markov line is chosen."""


def validation_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the validation results of a metrics row, or an empty mapping if the step was not validated."""
    return row.get(VALIDATION) or {}


def loss_curves(validation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return loss and accuracies of each validation curve, keyed by the curve's name, such as "span_6" or "token"."""
    return {name: values for name, values in validation.items() if isinstance(values, Mapping) and "loss" in values}


def bits_by_hidden(values: Mapping[str, float | None] | None) -> dict[int, float]:
    """Return bits per base by number of hidden bases, in ascending order. Missing values are left out."""
    return dict(sorted((int(hidden), bits) for hidden, bits in (values or {}).items() if bits is not None))


def model_bits(validation: Mapping[str, Any]) -> dict[int, float]:
    """Return the model's bits per base by number of hidden bases. Empty if they were not measured."""
    return bits_by_hidden(validation.get(BITS))


def markov_bits(validation: Mapping[str, Any]) -> dict[int, dict[int, float]]:
    """Return the bits per base of the Markov chains: by order, then by number of hidden bases."""
    orders = sorted((int(order), values) for order, values in (validation.get(MARKOV) or {}).items())
    return {order: bits_by_hidden(values) for order, values in orders}


def markov_half_width(validation: Mapping[str, Any], order: int, hidden: int) -> float | None:
    """Return half of the 95 % interval of the difference between model and Markov chain. None if it is unknown."""
    return bits_by_hidden((validation.get(MARKOV_HALF_WIDTH) or {}).get(str(order))).get(hidden)


def compared_bases(validation: Mapping[str, Any]) -> int | None:
    """Return the number of hidden bases to judge a run by: 5, or else the largest one that was measured."""
    measured = model_bits(validation)
    return COMPARED_BASES if COMPARED_BASES in measured else max(measured, default=None)


def markov_order(validation: Mapping[str, Any], hidden: int | None = None) -> int | None:
    """Return the order of the chain with the fewest bits for `hidden` hidden bases. None without chains.

    By default `hidden` is `compared_bases`, and the chain is the run's Markov line.
    """
    hidden = compared_bases(validation) if hidden is None else hidden
    orders = {order: bits[hidden] for order, bits in markov_bits(validation).items() if hidden in bits}
    return min(orders, key=orders.__getitem__, default=None)


def markov_name(order: int) -> str:
    """Return the name of a Markov chain in tables and figures."""
    return f"Markov order {order}"


def bits_lines(validation: Mapping[str, Any], hidden: int) -> dict[str, float]:
    """Return the bits to compare a model with for `hidden` hidden bases: guessing, composition and the best chain."""
    lines = {GUESSING: GUESSING_BITS}
    if (composition := bits_by_hidden(validation.get(COMPOSITION)).get(hidden)) is not None:
        lines[COMPOSITION] = composition
    if (order := markov_order(validation, hidden)) is not None:
        lines[markov_name(order)] = markov_bits(validation)[order][hidden]
    return lines


def bits_table(validation: Mapping[str, Any]) -> tuple[list[str], list[list[str | None]]]:
    """Return the titles and rows of a table of bits per base. Each row is for one number of hidden bases.

    The columns are the hidden bases, the model, the composition, each Markov order, and guessing. Both lists are empty
    if no bits were measured.
    """
    columns = {"model": model_bits(validation), COMPOSITION: bits_by_hidden(validation.get(COMPOSITION))}
    columns |= {markov_name(order): bits for order, bits in markov_bits(validation).items()}
    measured = {name: bits for name, bits in columns.items() if bits}
    if "model" not in measured:
        return [], []
    rows: list[list[str | None]] = [
        [str(hidden), *(bits_text(bits.get(hidden)) for bits in measured.values()), bits_text(GUESSING_BITS)]
        for hidden in measured["model"]
    ]
    return ["hidden bases", *measured, GUESSING], rows


def bits_text(bits: float | None) -> str | None:
    """Return bits with three decimals, or None if `bits` is None."""
    return None if bits is None else f"{bits:.3f}"


def narrowest_curve(validation: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name and values of the validation curve with the narrowest span, or None if there are no curves."""
    curves = loss_curves(validation)
    if not curves:
        return None
    return min(curves.items(), key=lambda curve: int("".join(filter(str.isdigit, curve[0])) or 0))


def validation_line(step: int, validation: Mapping[str, Any]) -> str:
    """Return a one-line summary of a validation. `step` is the number of completed steps.

    For example: "step 1000: 1.842 bits per base at 5 hidden bases; Markov order 8: 1.931 (difference -0.089 ± 0.004);
    guessing: 2". Without bits per base, the line has the token loss at the narrowest span. The composition is shown if
    it beats the Markov line.
    """
    if (hidden := compared_bases(validation)) is not None:
        lines = bits_lines(validation, hidden)
        best = min(lines.values())
        names = [name for name in lines if name != GUESSING and (name != COMPOSITION or lines[name] <= best)]
        bits = model_bits(validation)[hidden]
        shown = [f"{name}: {lines[name]:.3f}" for name in names]
        if (order := markov_order(validation)) is not None:
            difference, half = bits - lines[markov_name(order)], markov_half_width(validation, order, hidden)
            shown[-1] += "" if half is None else f" (difference {difference:+z.3f} ± {half:.3f})"
        text = f"{bits:.3f} bits per base at {bases_text(hidden)}"
        return f"step {step}: " + "; ".join([text, *shown, f"{GUESSING}: {GUESSING_BITS:g}"])
    if (curve := narrowest_curve(validation)) is None:
        return f"step {step}: no held-out loss"
    text = f"step {step}: held-out loss {curve[1]['loss']:.3f} nats per masked token ({curve_text(curve[0])})"
    plateau = validation.get(KMER_FREQUENCIES)
    return text if plateau is None else f"{text}; k-mer frequencies: {plateau:.3f}"


def bases_text(hidden: int) -> str:
    """Return "1 hidden base", "5 hidden bases" and so on."""
    return f"{hidden} hidden {'base' if hidden == 1 else 'bases'}"


def curve_text(name: str) -> str:
    """Return the name of a validation curve for a text, e.g. "span 6" for "span_6"."""
    return name.replace("_", " ") if name.startswith("span_") else "single tokens"


def last_rows(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the last rows of metrics.jsonl, at most `LAST_ROWS` and of one phase, since each phase is another task."""
    return [row for row in rows[-LAST_ROWS:] if row.get("phase") == rows[-1].get("phase")]


def last_loss_text(path: Path, num_steps: int) -> str:
    """Return the mean training loss of the last logged steps among the first `num_steps`, for the screen."""
    with contextlib.suppress(OSError, KeyError, TypeError):
        last: deque[dict[str, Any]] = deque(maxlen=LAST_ROWS)
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if row["step"] < num_steps:
                        last.append(row)
        if losses := [row["loss"] for row in last_rows(list(last)) if row["loss"] is not None]:
            steps = f"{len(losses)} logged steps" if len(losses) > 1 else "logged step"
            return f"loss {statistics.fmean(losses):.3f} (mean of the last {steps})"
    return "no loss logged"


def read_validations(path: Path, num_steps: int | None = None) -> list[dict[str, Any]]:
    """Return the validated rows of a metrics.jsonl: those of the first `num_steps` steps, or all.

    Other rows and damaged lines are skipped. The list is empty if the file can't be read.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if f'"{VALIDATION}"' not in line:
                continue
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int) and validation_of(row)]
    return [row for row in rows if num_steps is None or row["step"] < num_steps]
