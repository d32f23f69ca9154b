"""Models that answer: loading that makes nothing up, and batches of rows of several lengths.

Shapes: B rows, W tokens a row with specials, T_i tokens of row i without.
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
"""`input_ids` (B, W) int64 and `attention_mask` (B, W), None where nothing is padded → (B, …)."""


def load_model(
    auto_class: Any, folder: Path, config: PreTrainedConfig, may_lack: str | None = None, adapted: Sequence[str] = ()
) -> PreTrainedModel:
    """The model of a folder in fp32 on the CPU, ready to answer.

    `CheckpointError` where a tensor is missing or of another shape, but those with `may_lack` in their name and those
    named in `adapted`: answers from weights made up by chance would look like any other.
    """
    with suppress_transformers_output(), as_checkpoint_error(folder):
        model, report = auto_class.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    reshaped = {entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]}
    lacking = sorted({*report["missing_keys"], *reshaped} - set(adapted))
    lacking = [name for name in lacking if may_lack is None or may_lack not in name]
    if lacking:
        raise CheckpointError(
            f"{folder}: lacks {len(lacking)} tensors of a {type(model).__name__}, {lacking[0]} first;"
            f" {_MENDS.get(auto_class.__name__, 'export the model again')}"
        )
    return model.eval()


_MENDS = {
    "AutoModelForSequenceClassification": NAME_FINETUNED,
    "AutoModelForTokenClassification": NAME_FINETUNED,
    "AutoModelForMaskedLM": "name a pretrained model, as `dnabert-rm export` writes it",
}


def load_adapted(auto_class: Any, folder: Path, base: Path, config: PreTrainedConfig) -> torch.nn.Module:
    """The LoRA adapters in `folder` on their `base` model, merged into it.

    `CheckpointError` without peft, or where neither base nor adapters hold a tensor.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise CheckpointError(f"{folder}: holds LoRA adapters; install peft (pip install 'dnabert_rm[lora]')") from None
    with as_checkpoint_error(folder), safe_open(folder / ADAPTER_WEIGHTS, "np") as weights:
        held = [name.removeprefix(_ADAPTER_PREFIX) for name in weights.keys()]  # noqa: SIM118 (no dict)
    model = load_model(auto_class, base, config, adapted=held)
    with suppress_transformers_output(), as_checkpoint_error(folder):
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def adapter_base(folder: Path) -> Path | None:
    """The folder of the model that LoRA adapters in `folder` belong to; None where there are no adapters."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    named = read_json(folder / ADAPTER_CONFIG, error=CheckpointError).get("base_model_name_or_path")
    for base in (Path(str(named)), folder / str(named)):
        if (base / "config.json").is_file():
            return base
    raise CheckpointError(f"{folder / ADAPTER_CONFIG}: its base model {named!r} is not there; mend the path in it")


# ---- batches


@dataclass(frozen=True)
class Runner:
    """Runs rows of tokens through a model in batches of rows of similar lengths."""

    tokenizer: KmerTokenizer
    device: torch.device
    precision: str
    """fp32, or bf16 for autocasting."""
    batch_size: int

    def rows(self, sequences: Sequence[bytes]) -> list[NDArray[np.int32] | None]:
        """Tokens of each sequence between `[CLS]` and `[SEP]`; None where not one k-mer is known: all N, or short."""
        tokenizer = self.tokenizer
        ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        return [
            np.concatenate((ends[0], ids, ends[1]), dtype=np.int32) if (ids != UNK_ID).any() else None
            for ids in tokenizer.kmer_ids([letters.decode("ascii") for letters in sequences])
        ]

    def run(
        self, rows: Sequence[NDArray | None], forward: Forward, take: Callable[[NDArray, int], NDArray]
    ) -> list[NDArray | None]:
        """`take(answer, T_i)` of each row, where `answer` (…,) float32 is its part of what `forward` gives.

        Rows are sorted by length, so that batches hold little padding, and come back in order; None stays None.
        """
        known = [i for i, row in enumerate(rows) if row is not None]
        known.sort(key=lambda i: len(rows[i]), reverse=True)  # type: ignore[arg-type]
        answers: list[NDArray | None] = [None] * len(rows)
        for start in range(0, len(known), self.batch_size):
            batch = known[start : start + self.batch_size]
            found = self._forward([rows[i] for i in batch], forward)  # type: ignore[misc]
            for i, answer in zip(batch, found, strict=True):
                answers[i] = take(answer, len(rows[i]) - 2)  # type: ignore[arg-type]
        trim_heap()
        return answers

    def _forward(self, rows: list[NDArray], forward: Forward) -> NDArray[np.float32]:
        ids, mask = pad_rows(rows, max(map(len, rows)))
        # Without a mask attention runs its faster kernels.
        attention = None if mask.all() else torch.from_numpy(mask).to(self.device)
        with torch.inference_mode(), self.arithmetic():
            return forward(torch.from_numpy(ids).to(self.device), attention).float().cpu().numpy()

    def arithmetic(self) -> torch.autocast:
        """The context in which the model runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def trim_heap() -> None:
    """Hand freed memory to the system: batches of many shapes leave glibc's heap in pieces, which pile up."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def take_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
