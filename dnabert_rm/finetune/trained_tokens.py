"""The stride of the k-mers that a model was trained on, as the files of its folder record it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnabert_rm.finetune.finetune_settings import FINETUNING_FILE
from dnabert_rm.model.pretrained import pretraining_data
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json_or_empty


def is_trained_overlapping(*folders: Path) -> bool:
    """Return whether a model was trained on overlapping k-mers. Without a record, assume so.

    The first record counts. The files of each folder are read in this order: finetuning.json, because fine-tuning is
    the last training, pretraining.json and tokenizer_config.json. With LoRA adapters, pass their folder and then that
    of the base model.
    """
    records = (record for folder in folders for record in _records(folder))
    return bool(next((record for record in records if record is not None), True))


def _records(folder: Path) -> Iterator[Any]:
    yield read_json_or_empty(folder / FINETUNING_FILE).get("overlapping")
    yield pretraining_data(folder).get("overlap")
    yield read_json_or_empty(folder / "tokenizer_config.json").get("overlapping")


def stride_warning(overlapping: bool, *folders: Path) -> str:
    """Return a warning if a model is about to read overlapping k-mers but was trained on others, otherwise ""."""
    if not overlapping or is_trained_overlapping(*folders):
        return ""
    return f"warning: {folders[0]}: was trained on non-overlapping k-mers; pass --non-overlapping"


def check_trained_overlapping(task: str, *folders: Path) -> None:
    """Raise `CheckpointError` if a model was trained on non-overlapping k-mers, which `task` can't use."""
    if not is_trained_overlapping(*folders):
        raise CheckpointError(
            f"{folders[0]}: was trained on non-overlapping k-mers, but {task} needs overlapping ones; choose another"
            " model"
        )
