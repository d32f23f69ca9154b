"""Settings of `gue`: which runs to make, and settings that replace the suite's for all data sets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.finetune.finetune_settings import Precision

WEIGHTS = ("pretrained", "scratch")
OVERRIDES = (
    "epochs",
    "max_steps",
    "learning_rate",
    "batch_size",
    "warmup_steps",
    "weight_decay",
    "dropout",
    "eval_steps",
    "max_tokens",
    "precision",
)
"""Fields of `FinetuneSettings` that one may set for all data sets."""


@dataclass(frozen=True)
class SuiteSettings(Settings):
    """One call of `gue`: a model, a folder of data sets, seeds and arms."""

    GROUPS: ClassVar = {
        "model": "files",
        "sets": "what to run",
        "epochs": "settings for all data sets, in place of the suite's",
    }

    model: Path = setting(metavar="HFDIR")
    """Folder of an exported model."""
    data: Path = setting(metavar="GUE_DIR")
    """Folder with <family>/<name>/{train,dev,test}.csv."""
    output: Path = setting(metavar="DIR")
    """Folder for table.csv, table.md, table.png, scores.json and runs/."""
    keep_models: bool = False
    """Keep the fine-tuned model of each run; by default only scores, predictions and logs."""
    overwrite: bool = False
    """Repeat runs that are finished."""
    sets: tuple[str, ...] = setting((), separator=",", metavar="NAMES")
    """Data sets, such as mouse/0,tf or 'EMP/H3*'; by default all in the folder."""
    seeds: tuple[int, ...] = setting((42,), separator=",", metavar="N,N")
    """One run for each seed."""
    arms: tuple[Literal["pretrained", "scratch"], ...] = setting(("pretrained",), separator=",", metavar="NAMES")
    """pretrained, scratch (random weights) or both."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Take tokens with stride k; an arm of its own in the table."""
    stand_in: bool = False
    """Train on dev and test on test where train.csv is missing; never a GUE number."""
    jobs: int | None = setting(None, metavar="N", minimum=1)
    """Runs at a time; by default one per visible GPU, else 1."""
    dry_run: bool = False
    """List the runs and their settings, start none."""
    epochs: int | None = setting(None, metavar="N")
    """Passes over the training rows; removes the suite's --max-steps."""
    max_steps: int | None = setting(None, metavar="N")
    """Optimizer steps, whatever --epochs says."""
    learning_rate: float | None = setting(None, metavar="N")
    """Peak of linear warm-up and decay."""
    batch_size: int | None = setting(None, metavar="N")
    """Rows per optimizer step."""
    warmup_steps: int | None = setting(None, metavar="N")
    """Steps of warm-up."""
    weight_decay: float | None = setting(None, metavar="N")
    """Weight decay of AdamW."""
    dropout: float | None = setting(None, metavar="N")
    """Dropout of hidden states and attention."""
    eval_steps: int | None = setting(None, metavar="N")
    """Steps between evaluations on dev."""
    max_tokens: int | None = setting(None, metavar="N")
    """Tokens per sequence; longer ones keep their middle."""
    precision: Precision | None = None
    """fp32, or bf16 for mixed precision."""

    def problems(self) -> Iterator[str]:
        """Yield a line for each list that names nothing, or something twice."""
        for name in ("seeds", "arms"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                yield f"--{name} {','.join(map(str, values))}: name at least one, and each once"

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings given for all data sets, by the names of `FinetuneSettings`."""
        return {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
