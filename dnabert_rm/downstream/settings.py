"""What a fine-tuning run is told, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
DEV_ONE_IN = 10
# What a run writes into its output folder; the checkpoints go when it is done.
MODEL_FOLDER = "model"
SCORES_FILE = "scores.json"
PREDICTIONS_FILE = "predictions.csv"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = ".finetune-checkpoints"


@dataclass(frozen=True)
class FinetuneSettings:
    """One classifier on one data set; defaults are those of DNABERT-2's scripts where they have one."""

    model: Path
    """Folder of the pretrained model: config.json, safetensors, vocab.txt."""
    train: Path
    """CSV or TSV table with the columns sequence and label."""
    test: Path
    """The table that is scored once, at the end."""
    output: Path
    """Folder for the fine-tuned model, scores.json, predictions.csv and the TensorBoard files."""
    dev: Path | None = None
    """The table on which the checkpoint is chosen; None holds a tenth of the training rows out."""
    data_set: str | None = None
    """Name of the data set in scores.json; by default that of the training table's folder."""
    epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, even within an epoch or after several more; None for `epochs`."""
    learning_rate: float = 3e-5
    """Peak learning rate of AdamW; linear warm-up, then linear decay to 0."""
    batch_size: int = 32
    """Rows an optimizer step, over all ranks."""
    warmup_steps: int = 50
    """Steps of warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay; none on biases and LayerNorm."""
    dropout: float = 0.1
    """Dropout of hidden states and attention, whatever the model was pretrained with."""
    seed: int = 42
    """Seed of the new weights, the order of rows, the dropout and the rows held out."""
    max_tokens: int | None = None
    """Tokens a sequence may have, specials included; longer ones keep their middle. None for the model's positions."""
    overlapping: bool = True
    """Tokens with stride 1, or with stride k where False."""
    from_scratch: bool = False
    """Random weights in the same architecture: the control that shows what pretraining brought."""
    eval_steps: int = 200
    """Steps between evaluations on dev; the last step is evaluated too."""
    precision: str = "fp32"
    """fp32, or bf16 for autocasting."""
    overwrite: bool = False
    """Replace the results that `output` holds already."""

    def __post_init__(self) -> None:
        for name in ("model", "train", "test", "output", "dev"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        problems = [problem for problem in self._problems() if problem]
        if problems:
            raise ConfigError("; ".join(problems))

    def _problems(self) -> list[str]:
        at_least = {
            "epochs": 1, "max_steps": 1, "batch_size": 1, "warmup_steps": 0, "weight_decay": 0,
            "seed": 0, "max_tokens": 3, "eval_steps": 1,
        }  # fmt: skip
        problems = [
            f"{flag(name)} {value}: must be {lowest} or more"
            for name, lowest in at_least.items()
            if (value := getattr(self, name)) is not None and not lowest <= value < math.inf
        ]
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"--learning-rate {self.learning_rate}: must be more than 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"--dropout {self.dropout}: must be at least 0 and less than 1")
        if self.seed >= 2**32:
            problems.append(f"--seed {self.seed}: must be less than 2^32")
        if self.precision not in PRECISIONS:
            problems.append(f"--precision {self.precision}: must be one of {', '.join(PRECISIONS)}")
        if self.output.resolve() == self.model.resolve():
            problems.append(f"--output {self.output}: is the pretrained model's folder; name another")
        return problems

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.data_set or self.train.resolve().parent.name

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, paths as they were given."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def flag(field: str) -> str:
    """The command-line flag of a field."""
    return "--" + field.replace("_", "-")
