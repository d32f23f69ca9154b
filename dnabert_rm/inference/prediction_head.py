"""The head of a fine-tuned model: the meaning of its logits, and the settings for tokenizing sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.finetune.finetune_settings import CONFIG_ENTRY, FINETUNING_FILE
from dnabert_rm.finetune.tasks import (
    TASK_CLASSES,
    MultiLabelClassification,
    Regression,
    SequenceClassification,
    Task,
)
from dnabert_rm.inference.model_loading import ModelFolder
from dnabert_rm.inference.sequence_input import LONG
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json


@dataclass(frozen=True)
class Head:
    """The task of a fine-tuned model, with the settings for tokenizing and cutting sequences."""

    task: Task
    """Converts logits to table cells. For `bases` it is `SequenceClassification`, because each base has its own row."""
    per_base: bool = False
    overlapping: bool = True
    max_tokens: int | None = None
    long: str = "middle"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the model's outputs, in order."""
        return self.task.labels

    def cells(self, logits: NDArray) -> list[list[str]]:
        """Return the table cells for each row of `logits`, shape (rows, labels). A row with NaN gives empty cells."""
        missing = np.isnan(logits).any(axis=1)
        filled = self.task.predictions(np.where(missing[:, None], 0, logits), np.zeros(len(logits)))
        empty = [""] * len(self.task.prediction_columns())
        return [empty if is_missing else row for row, is_missing in zip(filled, missing, strict=True)]


def read_head(folder: ModelFolder) -> Head:
    """Read the head of a fine-tuned model from the first of these sources that exists:

    - `finetuning.json`, which `finetune` writes.
    - The entry `dnabert_rm_finetuning` of config.json, which transformers' `save_pretrained` preserves.
    - The `problem_type` of config.json, for models that other programs trained.

    Raises `CheckpointError` if no source defines the meaning of the model's outputs, or if the first source contradicts
    config.json. The reason may be that another program trained the model later and kept the file or the entry.
    """
    record: Any
    path = folder.path / FINETUNING_FILE
    if path.is_file():
        record = read_json(path)
        head = _recorded_head(str(path), record)
        # The configuration of LoRA adapters may be that of their base model, which has no labels.
        if folder.base is None:
            _check_head(head, record, folder.config, str(path), "this file")
        return head
    record = getattr(folder.config, CONFIG_ENTRY, None)
    if record is None:
        return _head_by_problem_type(folder)
    name = f"{folder.path / 'config.json'}: {CONFIG_ENTRY}"
    head = _recorded_head(name, record)
    _check_head(head, record, folder.config, name, "this entry")
    return head


def _check_head(head: Head, record: dict[str, Any], config: Any, name: str, source: str) -> None:
    """Raise `CheckpointError` if the task or the labels of `head` are not those of config.json.

    The names of regression targets are not compared, only their number. `head` was read from `record`. `name` and
    `source` name the record in the message.
    """
    task = TASK_CLASSES[record["task"]]
    if config.problem_type != task.problem_type:
        raise CheckpointError(
            f"{name} contradicts problem_type; remove {source} if the model was later trained with another program"
        )
    labels = _label_names(config)
    if list(head.labels) != labels and not (task is Regression and len(head.labels) == len(labels)):
        raise CheckpointError(
            f"{name} contradicts id2label; write the same labels into both, or remove {source} if the model was later"
            " trained with another program"
        )


def _recorded_head(name: str, record: Any) -> Head:
    """Return the head that `finetune` recorded. Raise `CheckpointError` if the record is invalid."""
    try:
        kind = TASK_CLASSES[record["task"]]
        labels = tuple(str(label) for label in record["labels"])
        scales = [tuple(map(float, record.get(name) or ())) for name in ("target_mean", "target_std")]
        if not labels or {len(scale) for scale in scales} - {len(labels) if kind is Regression else 0}:
            raise ValueError("labels, target_mean and target_std do not match")
        head = Head(
            task=(SequenceClassification if kind.per_base else kind)(labels, labels, *scales),
            per_base=kind.per_base,
            overlapping=bool(record.get("overlapping", True)),
            max_tokens=None if record.get("max_tokens") is None else int(record["max_tokens"]),
            long=record.get("long") or "middle",
        )
        if head.long not in LONG:
            raise ValueError(f'"long" is {head.long!r}, not one of {", ".join(LONG)}')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: does not describe a fine-tuned model ({error}); fine-tune again") from None
    return head


def _head_by_problem_type(folder: ModelFolder) -> Head:
    """Return the head of a model that `finetune` did not write. Raise `CheckpointError` if its task is unknown."""
    config = folder.config
    labels = tuple(_label_names(config))
    file = folder.tokenizer / "tokenizer_config.json"
    overlapping = bool(read_json(file).get("overlapping", True)) if file.is_file() else True
    classes = SequenceClassification(labels, labels)
    architectures = config.architectures or []
    if any(name.endswith("ForTokenClassification") for name in architectures):
        return Head(classes, per_base=True, overlapping=overlapping)
    if config.problem_type == MultiLabelClassification.problem_type:
        return Head(MultiLabelClassification(labels, labels), overlapping=overlapping)
    if config.problem_type == SequenceClassification.problem_type and len(labels) > 1:
        return Head(classes, overlapping=overlapping)
    if folder.base is None and architectures and not any("Classification" in name for name in architectures):
        return Head(classes)  # a pretrained model: loading it reports that it has no head
    if config.problem_type == Regression.problem_type:
        raise CheckpointError(
            f"{folder.path}: is a regression model without {FINETUNING_FILE}, so the unit of its outputs is unknown;"
            " copy this file from the folder that `dnabert-rm finetune` wrote"
        )
    raise CheckpointError(
        f"{folder.path}: has no {FINETUNING_FILE}, and config.json does not define the meaning of the outputs;"
        f' set "problem_type" in config.json to "{SequenceClassification.problem_type}" or'
        f' "{MultiLabelClassification.problem_type}", or copy {FINETUNING_FILE} from the fine-tuned model'
    )


def _label_names(config: Any) -> list[str]:
    return [str(config.id2label[i]) for i in range(config.num_labels)]
