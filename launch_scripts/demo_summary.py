"""The table at the end of `make demo`: loss at the end of each phase, fine-tuning scores, where to look next."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LAST_STEPS = 50


def phase_rows(metrics: list[dict]) -> list[tuple[int, int, float, float]]:
    """Phase, its largest span, mean loss and mean masked accuracy over its last logged steps (up to 50 steps)."""
    rows = []
    for phase in sorted({row["phase"] for row in metrics}):
        own = [row for row in metrics if row["phase"] == phase]
        last = [row for row in own if row["step"] > own[-1]["step"] - LAST_STEPS]
        loss = sum(row["loss"] for row in last) / len(last)
        accuracy = sum(row["masked_accuracy"] for row in last) / len(last)
        rows.append((phase, own[-1]["max_span"], loss, accuracy))
    return rows


def main(folder: Path) -> None:
    """Print the table for a demo folder."""
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    print("\nphase  spans up to  loss at its end  masked accuracy")
    for phase, span, loss, accuracy in phase_rows(metrics):
        print(f"{phase:>5}  {span:>11}  {loss:>15.3f}  {accuracy:>15.3f}")
    scores = {start: folder / start / "scores.json" for start in ("pretrained", "scratch")}
    if all(path.exists() for path in scores.values()):
        print("\nfine-tuning      test MCC   test accuracy")
        for start, path in scores.items():
            test = json.loads(path.read_text())["metrics"]["test"]
            print(f"{start:<15}  {test['mcc']:>8.3f}   {test['accuracy']:>13.3f}")
    print(f"\nThe curves: .venv/bin/tensorboard --logdir {folder / 'run'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
