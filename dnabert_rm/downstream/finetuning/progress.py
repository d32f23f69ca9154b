"""What fine-tuning shows while it runs."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from dnabert_rm.progress import progress_bar


class Progress(TrainerCallback):
    """Progress on standard error, and a line for each evaluation."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        """The metric on dev that chooses the checkpoint."""
        self.bar: Any = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = progress_bar(
            "fine-tuning", state.max_steps, "step", scaled=False, leave=True, quiet=not state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        # The last evaluation's line, too, shall have the loss up to it, however short the run was.
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.loss = given["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.bar is not None and state.is_world_process_zero:
            metrics = given["metrics"]
            line = (
                f"step {state.global_step}/{state.max_steps}  loss {self.loss:.4f}"
                f"  dev loss {metrics['eval_loss']:.4f}  dev {self.metric} {metrics['eval_' + self.metric]:.4f}"
            )
            tqdm.write(line, file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
        self.bar = None
