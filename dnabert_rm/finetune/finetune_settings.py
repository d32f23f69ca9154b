"""Settings of `finetune`, checked when constructed."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting, settings_of

Precision = Literal["fp32", "bf16"]
Task = Literal["classes", "multi-label", "regression", "bases"]
TASKS: tuple[str, ...] = typing.get_args(Task)
DEV_ONE_IN = 10
# Files of the output folder. The checkpoints are deleted at the end of the run.
MODEL_FOLDER = "model"
FINETUNING_FILE = "finetuning.json"
"""File in the model's folder with the settings that `predict` needs."""
CONFIG_ENTRY = "dnabert_rm_finetuning"
"""Entry of config.json with the content of `FINETUNING_FILE`. It survives transformers' `save_pretrained`."""
SCORES_FILE = "scores.json"
PREDICTIONS_FILE = "predictions.csv"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = ".finetune-checkpoints"
METRIC_TITLES = {
    "mcc": "MCC",
    "f1_macro": "macro F1",
    "accuracy": "accuracy",
    "r2": "R²",
    "spearman": "Spearman",
    "pearson": "Pearson",
}
"""Titles of the metrics in tables and plots, by key of scores.json."""


def _seeds(text: str) -> int | tuple[int, ...]:
    """Parse `--seeds`. Return an integer for a number of seeds (`5`), or a tuple for a list of seeds (`1,2,3`)."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be a number of seeds or a list like 1,2,3") from None
    if len(numbers) > 1:
        return numbers
    if numbers[0] < 1:
        raise ValueError("must be at least 1")
    return numbers[0]


def _columns(text: str) -> tuple[str, ...]:
    """Parse `--label-columns`. Keep empty names, so that `problems` reports them."""
    return tuple(name.strip() for name in text.split(","))


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """Settings of `finetune`, which trains a model on one data set.

    The default values of the training settings follow DNABERT-2's scripts.
    """

    GROUPS: ClassVar = {"model": "files", "task": "task", "epochs": "training", "max_tokens": "model"}

    model: Path = setting(metavar="HFDIR")
    """Folder of the pretrained model with config.json, safetensors, and vocab.txt or tokenizer.json."""
    train: Path = setting(metavar="CSV")
    """CSV or TSV table with the column sequence and the columns in --label-columns."""
    test: Path = setting(metavar="CSV")
    """Table that is scored once, at the end."""
    output: Path = setting(metavar="DIR")
    """Folder for the fine-tuned model, scores.json, predictions.csv and TensorBoard files."""
    dev: Path | None = setting(None, metavar="CSV")
    """Table for choosing the checkpoint; by default a tenth of the training rows is held out."""
    overwrite: bool = False
    """Replace results that are already in --output."""
    data_set: str | None = setting(None, metavar="NAME")
    """Name of the data set in scores.json; by default the name of the training table's folder."""
    task: Task = "classes"
    """Output of the head: a class, several binary labels, numbers, or a class per base."""
    label_columns: tuple[str, ...] = setting(("label",), separator=",", metavar="A,B,C", parse=_columns)
    """Names of the label columns. multi-label (0 or 1 in each column) and regression accept several."""
    bad_rows: Literal["fail", "drop"] = "fail"
    """Stop at a row that can't be used (fail), or leave it out with a warning (drop)."""
    best_metric: str | None = setting(None, metavar="NAME")
    """Metric on dev for choosing the checkpoint; by default it depends on --task."""
    class_weights: Literal["balanced"] | None = None
    """Weight each class by the inverse of its frequency (balanced); by default all rows have the same weight."""
    epochs: int = setting(3, metavar="N", minimum=1)
    """Number of passes over the training rows."""
    max_steps: int | None = setting(None, metavar="N", minimum=1)
    """Number of optimizer steps; overrides --epochs."""
    learning_rate: float | None = setting(None, metavar="N", above=0)
    """Peak learning rate of AdamW, with linear warm-up and linear decay to 0. By default it follows from the model's
    width: 3e-5 at 768 and above, more for narrower models, at most 1e-3."""
    batch_size: int = setting(32, metavar="N", minimum=1)
    """Rows per optimizer step, over all ranks."""
    warmup_steps: int = setting(50, metavar="N", minimum=0)
    """Number of warm-up steps."""
    weight_decay: float = setting(0.01, metavar="N", minimum=0)
    """Weight decay of AdamW; biases and LayerNorm have none."""
    dropout: float = setting(0.1, metavar="N", minimum=0, below=1)
    """Dropout of hidden states and attention; replaces the pretraining value."""
    eval_steps: int = setting(200, metavar="N", minimum=1)
    """Number of steps between evaluations on dev; the last step is also evaluated."""
    seed: int = setting(42, metavar="N", minimum=0, below=2**32)
    """Seed of the new weights, the order of rows, the dropout and the held-out rows."""
    seeds: tuple[int, ...] | None = setting(None, metavar="N|A,B,C", minimum=0, below=2**32, parse=_seeds)
    """Repeat with several seeds, one sub-folder each. 5 means --seed and the next 4 numbers; 1,2,3 lists the seeds."""
    early_stopping: int | None = setting(None, metavar="N", minimum=1)
    """Stop after this many evaluations without a new best; by default never."""
    precision: Precision = "fp32"
    """fp32, or bf16 for mixed precision."""
    max_tokens: int | None = setting(None, metavar="N", minimum=3)
    """Maximum input length in tokens, special tokens included; by default the model's number of positions."""
    long: Literal["middle", "window"] = "middle"
    """How to handle sequences above the maximum length: keep the middle, or average over overlapping windows."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Take tokens with stride k instead of 1."""
    lora: int | None = setting(None, metavar="R", minimum=1)
    """Rank of LoRA adapters to train instead of the encoder's weights; by default there are no adapters."""
    freeze_encoder: bool = False
    """Train only the head (linear probing)."""
    from_scratch: bool = False
    """Start from random weights in the same architecture, as a control for the effect of pretraining."""

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", tuple(range(self.seed, self.seed + self.seeds)))
        super().__post_init__()

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.output.resolve() == self.model.resolve():
            yield f"--output {self.output}: is the folder of the pretrained model; choose another folder"
        if self.seeds is not None and (len(self.seeds) != len(set(self.seeds)) or not self.seeds):
            yield "--seeds: list each seed once"
        yield from self._column_problems()
        if self.lora and self.freeze_encoder:
            yield "--lora and --freeze-encoder: pass only one of them"
        if self.lora and self.from_scratch:
            yield "--lora: trains adapters of a pretrained model; remove --from-scratch"
        if self.class_weights and self.task == "regression":
            yield "--class-weights: --task regression has no classes; remove --class-weights"

    def _column_problems(self) -> Iterator[str]:
        columns = [name.lower() for name in self.label_columns]
        shown = ",".join(self.label_columns)
        if not all(columns) or not columns or len(columns) != len(set(columns)) or "sequence" in columns:
            yield f"--label-columns {shown}: list each label column once, separated by commas"
        elif len(columns) > 1 and self.task not in ("multi-label", "regression"):
            yield f"--label-columns {shown}: --task {self.task} takes one label column; pass one"

    @property
    def name(self) -> str:
        """Return the data set's name: `data_set` if it is set, otherwise the name of the training table's folder."""
        return self.data_set or self.train.resolve().parent.name

    @property
    def tables(self) -> dict[str, Path]:
        """Return the path of each table, keyed by split. Without `--dev`, the key `dev` is absent."""
        paths = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: path for split, path in paths.items() if path is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values. Paths become strings, as the user wrote them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def flag(field: str) -> str:
    """Return the command-line flag of a field of `FinetuneSettings`."""
    return settings_of(FinetuneSettings)[field].flag
