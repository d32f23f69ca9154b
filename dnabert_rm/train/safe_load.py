"""Loading what torch saved without giving it a chance to run code: only tensors and a few named classes pass."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dnabert_rm.errors import ShareError


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """Inside, every `torch.load`, DeepSpeed's too, runs with `weights_only=True`: a checkpoint can't run code.

    DeepSpeed asks for `weights_only=False` by name, so the argument is overridden. The few classes of its own that
    it stores are allowed by name. `ShareError` names a file that holds others, or is damaged.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    plain_load = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        try:
            return plain_load(file, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            # torch's reasons run over many lines and advise to load it all the same.
            reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:100]})"
            raise ShareError(
                f"{file}: holds more than tensors, or is damaged{reason}, and was not loaded; use another checkpoint"
            ) from None

    torch.load = load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        torch.load = plain_load


def check_tensors_only(path: Path) -> None:
    """`CheckpointError` where a file of torch's holds more than tensors and plain values; their data are not read."""
    with safe_torch_load():
        torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))
