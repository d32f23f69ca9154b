"""Whether a folder can hold a model, asked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from dnabert_rm.errors import CheckpointError

NAME_EXPORTED = "name a folder that `dnabert-rm export` has written"
NAME_FINETUNED = "name the model/ folder that `dnabert-rm finetune` has written"


def check_model_folder(folder: Path, mend: str = NAME_EXPORTED) -> None:
    """Raise `CheckpointError`, with `mend` as what to do, where `folder` has no config.json."""
    if (folder / "config.json").is_file():
        return
    below = folder / "model"
    if (below / "config.json").is_file():
        mend = f"name {below}"
    what = "no config.json there" if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder}: {what}; {mend}")
