"""What a fine-tuning run is told, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.utils.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
TASKS = ("classes", "multi-label", "regression", "bases")
BAD_ROWS = ("fail", "drop")
LONG = ("middle", "window")
CLASS_WEIGHTS = ("balanced",)
DEV_ONE_IN = 10
# What a run writes into its output folder; the checkpoints go when it is done.
MODEL_FOLDER = "model"
FINETUNING_FILE = "finetuning.json"
"""In the model's folder: what predicting needs beside the model."""
SCORES_FILE = "scores.json"
PREDICTIONS_FILE = "predictions.csv"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = ".finetune-checkpoints"


@dataclass(frozen=True)
class FinetuneSettings:
    """One head on one data set; defaults are those of DNABERT-2's scripts where they have one."""

    model: Path
    """Folder of the pretrained model: config.json, safetensors, vocab.txt."""
    train: Path
    """CSV or TSV table with the column sequence and those of `label_columns`."""
    test: Path
    """The table that is scored once, at the end."""
    output: Path
    """Folder for the fine-tuned model, scores.json, predictions.csv and the TensorBoard files."""
    dev: Path | None = None
    """The table on which the checkpoint is chosen; None holds a tenth of the training rows out."""
    data_set: str | None = None
    """Name of the data set in scores.json; by default that of the training table's folder."""
    task: str = "classes"
    """What the head answers, one of `TASKS`: a class, several yes/no labels, numbers, or a class for each base."""
    label_columns: tuple[str, ...] = ("label",)
    """Columns of the labels; several for `multi-label` (0 or 1 each) and `regression`."""
    bad_rows: str = "fail"
    """fail at a row that can't be used, or drop it and say so."""
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
    seeds: tuple[int, ...] | None = None
    """Several seeds instead of `seed`, each in a sub-folder of its own."""
    best_metric: str | None = None
    """The metric on dev that chooses the checkpoint; None for the task's own."""
    early_stopping: int | None = None
    """Stop after so many evaluations that were no better than the best before; None for never."""
    class_weights: str | None = None
    """"balanced" weighs each class by the inverse of its share; None weighs rows alike."""
    lora: int | None = None
    """Rank of LoRA's adapters, which are trained in place of the encoder's weights; None trains the weights."""
    freeze_encoder: bool = False
    """Train the head alone: a probe."""
    max_tokens: int | None = None
    """Tokens the model is given at once, specials included; None for the model's positions."""
    long: str = "middle"
    """What is done to longer sequences: their middle is kept, or they are cut into windows that overlap."""
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
        for name in ("label_columns", "seeds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = [problem for problem in self._problems() if problem]
        if problems:
            raise ConfigError("; ".join(problems))

    def _problems(self) -> list[str]:
        at_least = {
            "epochs": 1, "max_steps": 1, "batch_size": 1, "warmup_steps": 0, "weight_decay": 0, "early_stopping": 1,
            "max_tokens": 3, "eval_steps": 1, "lora": 1,
        }  # fmt: skip
        problems = [
            f"{flag(name)} {value}: must be {lowest} or more"
            for name, lowest in at_least.items()
            if (value := getattr(self, name)) is not None and not lowest <= value < math.inf
        ]
        one_of = {"precision": PRECISIONS, "task": TASKS, "bad_rows": BAD_ROWS, "long": LONG,
                  "class_weights": (None, *CLASS_WEIGHTS)}  # fmt: skip
        problems += [
            f"{flag(name)} {getattr(self, name)}: must be one of {', '.join(filter(None, allowed))}"
            for name, allowed in one_of.items()
            if getattr(self, name) not in allowed
        ]
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"--learning-rate {self.learning_rate}: must be more than 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"--dropout {self.dropout}: must be at least 0 and less than 1")
        if self.output.resolve() == self.model.resolve():
            problems.append(f"--output {self.output}: is the pretrained model's folder; name another")
        return problems + self._wrong_seeds() + self._wrong_columns() + self._contradictions()

    def _wrong_seeds(self) -> list[str]:
        name, seeds = ("seed", (self.seed,)) if self.seeds is None else ("seeds", self.seeds)
        problems = [f"--{name} {seed}: must be 0 or more and less than 2^32" for seed in seeds if not 0 <= seed < 2**32]
        if len(seeds) != len(set(seeds)) or not seeds:
            problems.append("--seeds: name each seed once")
        return problems

    def _wrong_columns(self) -> list[str]:
        columns = [name.lower() for name in self.label_columns]
        shown = ",".join(self.label_columns)
        if not all(columns) or not columns or len(columns) != len(set(columns)) or "sequence" in columns:
            return [f"--label-columns {shown}: name each column of labels once, separated by commas"]
        if len(columns) > 1 and self.task not in ("multi-label", "regression"):
            return [f"--label-columns {shown}: --task {self.task} has one column of labels"]
        return []

    def _contradictions(self) -> list[str]:
        problems = []
        if self.lora and self.freeze_encoder:
            problems.append("--lora and --freeze-encoder: pass one of them")
        if self.lora and self.from_scratch:
            problems.append("--lora: trains adapters of a pretrained model; leave --from-scratch out")
        if self.class_weights and self.task == "regression":
            problems.append("--class-weights: --task regression has no classes")
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
