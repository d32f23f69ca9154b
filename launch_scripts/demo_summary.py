"""Summary of `make demo`: the loss at the end of each phase, and the fine-tuning scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

LAST_STEPS = 50


class PhaseRow(NamedTuple):
    """Results of one phase: largest span, and mean loss and accuracy over the phase's last `LAST_STEPS` steps."""

    phase: int
    max_span: int
    loss: float
    accuracy: float


def phase_rows(metrics: list[dict]) -> list[PhaseRow]:
    """Return one row per phase. `metrics` contains the parsed lines of metrics.jsonl."""
    rows = []
    for phase in sorted({row["phase"] for row in metrics}):
        in_phase = [row for row in metrics if row["phase"] == phase]
        last = [row for row in in_phase if row["step"] > in_phase[-1]["step"] - LAST_STEPS]
        loss = sum(row["loss"] for row in last) / len(last)
        accuracy = sum(row["masked_accuracy"] for row in last) / len(last)
        rows.append(PhaseRow(phase, in_phase[-1]["max_span"], loss, accuracy))
    return rows


def main(folder: Path) -> None:
    """Print the summary of the results in a demo folder."""
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    print("\nphase  spans up to  loss at its end  masked accuracy")
    for phase, span, loss, accuracy in phase_rows(metrics):
        print(f"{phase:>5}  {span:>11}  {loss:>15.3f}  {accuracy:>15.3f}")
    scores = {start: folder / start / "scores.json" for start in ("pretrained", "scratch")}
    if all(path.exists() for path in scores.values()):
        print("\nfine-tuning      test MCC   test accuracy")
        for start, path in scores.items():
            test = json.loads(path.read_text(encoding="utf-8"))["metrics"]["test"]
            print(f"{start:<15}  {test['mcc']:>8.3f}   {test['accuracy']:>13.3f}")
    print(f"\nCurves: .venv/bin/tensorboard --logdir {folder / 'run'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
