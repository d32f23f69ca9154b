"""Strict model loading, and batched forward passes over sequences of different lengths.

Shapes: B rows per batch, W tokens per padded row with special tokens, T_i k-mers of row i.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dnabert_rm.finetune.lora import ADAPTER_CONFIG
from dnabert_rm.finetune.pretrained_encoder import as_checkpoint_error, suppress_transformers_output
from dnabert_rm.genome.kmer import UNK_ID
from dnabert_rm.model.pretrained import NAME_FINETUNED
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.windows import pad_rows
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_PREFIX = "base_model.model."

Item = TypeVar("Item")
Forward = Callable[[Tensor, Tensor | None], Tensor]
"""Map `input_ids` (B, W) int64 and `attention_mask` (B, W) to outputs (B, …). Without padding, the mask is None."""


# ---- loading


def load_model(
    auto_class: Any, folder: Path, config: PreTrainedConfig, optional: str | None = None, adapted: Sequence[str] = ()
) -> PreTrainedModel:
    """Load a model in fp32 on the CPU, in evaluation mode.

    Raises `CheckpointError` if a tensor is missing or wrongly shaped, because transformers would silently initialize it
    at random. A tensor may be missing if its name contains `optional` or is listed in `adapted`.
    """
    with suppress_transformers_output(), as_checkpoint_error(folder):
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    reshaped = {entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]}
    missing = sorted({*report["missing_keys"], *reshaped} - set(adapted))
    missing = [name for name in missing if optional is None or optional not in name]
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]};"
            f" {_FIXES.get(auto_class.__name__, 'export the model again')}"
        )
    return model.eval()


_FIXES = {
    "AutoModelForSequenceClassification": NAME_FINETUNED,
    "AutoModelForTokenClassification": NAME_FINETUNED,
    "AutoModelForMaskedLM": "choose a pretrained model written by `dnabert-rm export`",
}


def load_adapted(auto_class: Any, folder: Path, base: Path, config: PreTrainedConfig) -> torch.nn.Module:
    """Load the LoRA adapters in `folder` and merge them into the model in `base`.

    Raises `CheckpointError` if peft is not installed, or if a tensor is in neither the base model nor the adapters.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise CheckpointError(f"{folder}: holds LoRA adapters; install peft (pip install 'dnabert_rm[lora]')") from None
    with as_checkpoint_error(folder), safe_open(folder / ADAPTER_WEIGHTS, "np") as weights:
        adapted = [name.removeprefix(_ADAPTER_PREFIX) for name in weights.keys()]  # noqa: SIM118 (no dict)
    model = load_model(auto_class, base, config, adapted=adapted)
    with suppress_transformers_output(), as_checkpoint_error(folder):
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def adapter_base(folder: Path) -> Path | None:
    """Return the base model's folder for the LoRA adapters in `folder`, or None if `folder` holds no adapters."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base_name = read_json(folder / ADAPTER_CONFIG, error=CheckpointError).get("base_model_name_or_path")
    for base in (Path(str(base_name)), folder / str(base_name)):
        if (base / "config.json").is_file():
            return base
    raise CheckpointError(
        f"{folder / ADAPTER_CONFIG}: base model {base_name!r} does not exist; fix base_model_name_or_path"
    )


# ---- batched forward passes


@dataclass(frozen=True)
class BatchRunner:
    """A tokenizer, and forward passes in batches. Rows of similar length share a batch."""

    tokenizer: KmerTokenizer
    device: torch.device
    precision: str
    """fp32, or bf16 to run under autocast."""
    batch_size: int

    def tokenize(self, sequences: Sequence[bytes]) -> list[NDArray[np.int32] | None]:
        """Return each sequence's token ids with `[CLS]` and `[SEP]`.

        The ids are None for a sequence without a known k-mer, because it is too short or has an ambiguous
        base in every k-mer.
        """
        tokenizer = self.tokenizer
        return [
            np.concatenate(([tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]), dtype=np.int32)
            if (ids != UNK_ID).any()
            else None
            for ids in tokenizer.kmer_ids([sequence.decode("ascii") for sequence in sequences])
        ]

    def run(
        self, rows: Sequence[NDArray | None], forward: Forward, select: Callable[[NDArray, int], NDArray]
    ) -> list[NDArray | None]:
        """Return `select(output, T_i)` for each row. `output` (…,) float32 is the row's slice of `forward`'s result.

        Rows of similar length share a batch to keep padding small. Results have the order of `rows`. The result is None
        for a row that is None.
        """
        known = [i for i, row in enumerate(rows) if row is not None]
        known.sort(key=lambda i: len(rows[i]), reverse=True)  # type: ignore[arg-type]
        results: list[NDArray | None] = [None] * len(rows)
        for start in range(0, len(known), self.batch_size):
            indices = known[start : start + self.batch_size]
            outputs = self._forward([rows[i] for i in indices], forward)  # type: ignore[misc]
            for i, output in zip(indices, outputs, strict=True):
                results[i] = select(output, len(rows[i]) - 2)  # type: ignore[arg-type]
        trim_heap()
        return results

    def _forward(self, rows: list[NDArray], forward: Forward) -> NDArray[np.float32]:
        ids, mask = pad_rows(rows, max(map(len, rows)))
        # Without a mask, attention can use faster kernels.
        attention_mask = None if mask.all() else torch.from_numpy(mask).to(self.device)
        with torch.inference_mode(), self.autocast():
            return forward(torch.from_numpy(ids).to(self.device), attention_mask).float().cpu().numpy()

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def trim_heap() -> None:
    """Return freed memory to the system. Batches of many shapes would otherwise fragment and grow glibc's heap."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
