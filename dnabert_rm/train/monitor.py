"""TensorBoard and metrics.jsonl: the same numbers in both, no point twice after a resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dnabert_rm.shards import write_atomically
from dnabert_rm.train.seal import flush

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
TAGS = {
    "loss": "train/loss",
    "masked_accuracy": "train/masked_accuracy",
    "base_accuracy": "train/base_accuracy",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "phase": "masking/phase",
    "max_span": "masking/max_span",
    "mean_span": "masking/mean_span",
    "masked_fraction": "masking/masked_fraction",
    "tokens_per_second": "speed/tokens_per_second",
    "tflops_per_rank": "speed/tflops_per_rank",
    "mfu": "speed/mfu",
    "data_wait": "speed/data_wait",
    "save_seconds": "speed/save_seconds",
    "replaced_windows": "progress/replaced_windows",
    "epoch": "progress/epoch",
    "global_batch": "progress/global_batch",
    "loss_scale": "train/loss_scale",
}


class Monitor:
    """The writers of rank 0. A resumed run goes on in the same curves, from its first step."""

    def __init__(self, run: Path, first_step: int) -> None:
        """Points at `first_step` and later, from before a kill, are dropped from both records."""
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._events = run / METRICS_NAME, run / TENSORBOARD_NAME
        drop_later_rows(self._path, first_step)
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
        # A run that was killed before its first checkpoint begins again at step 0, and has points to drop.
        began_before = any(self._events.glob("events.*"))
        self._board = SummaryWriter(str(self._events), purge_step=first_step if began_before else None)

    def log(self, row: dict[str, Any]) -> None:
        """One logged step: `row["step"]` and the values."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for name, tag in TAGS.items():
            if row.get(name) is not None:
                self._board.add_scalar(tag, row[name], row["step"])

    def flush(self) -> None:
        """Put what was logged on disk: to be called before a checkpoint of these steps becomes visible."""
        os.fsync(self._lines.fileno())
        self._board.flush()
        for path in self._events.iterdir():
            flush(path)

    def close(self) -> None:
        """Write what is buffered."""
        self._lines.close()
        self._board.close()


def drop_later_rows(path: Path, first_step: int) -> None:
    """Keep only whole rows of steps before `first_step`; a torn last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] < first_step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
