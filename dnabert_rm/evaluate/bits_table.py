"""Text table of the results of `evaluate bits`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def bits_table(results: Mapping[str, Any]) -> str:
    """Return the results as text: one table for each group of bases, then differences from the best Markov chain."""
    widths = list(results["hidden_bases"])
    names = {row["name"]: _shown(row["name"]) for row in results["rows"]}
    first = max(len("hidden bases in a row"), *(len(name) + 2 for name in names.values()))
    lines = [
        f"bits per base on {results['regions']} held-out regions of split {results['split']} "
        f"({', '.join(map(str, results['data']))}); lower is better",
        "",
        "hidden bases in a row".ljust(first) + "".join(width.rjust(16) for width in widths),
        "guessing".ljust(first) + "".join(f"{results['guessing']:.4f}".rjust(16) for _ in widths),
    ]
    group = "all"
    for row in results["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"{group}:"]
        cells = (_cell(row["bits"][width], row["standard_error"][width]) for width in widths)
        lines.append(names[row["name"]].ljust(first) + "".join(cell.rjust(16) for cell in cells))
    compared = [row for row in results["rows"] if row["group"] == "all" and "minus_line" in row]
    lines += ["", f"difference from {_shown(results['best_line'])} (negative: the model is better):"]
    for row in compared:
        cells = (_cell(row["minus_line"][width], row["minus_line_error"][width], sign="+") for width in widths)
        lines.append(names[row["name"]].ljust(first) + "".join(cell.rjust(16) for cell in cells))
    if results["non_overlapping"]:
        models = ", ".join(results["non_overlapping"])
        lines += ["", f"tokens don't overlap, so more bases are hidden than for the lines: {models}"]
    return "\n".join(lines)


def _shown(name: str) -> str:
    """Return the name of a line or model as the table shows it. A long path is cut at its beginning."""
    if name.startswith("markov_"):
        return f"Markov order {name.removeprefix('markov_')}"
    parts = PurePath(name).parts
    return name if len(name) <= 40 else "…/" + "/".join(parts[-2:])


def _cell(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    shown = f"{value:{sign}.4f}"
    return shown if error is None else f"{shown} ±{error:.4f}"
