"""What flags and documentation say of each field: name, type, default, text, and whether a resume may change it."""

from __future__ import annotations

import ast
import inspect
import itertools
import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from dnabert_rm.config.run_config import SECTIONS

FREE_TO_CHANGE = {
    "data.path", "data.num_workers", "data.prefetch", "data.on_bad_shard", "data.allow_pipe", "data.cache_dir",
    "data.cache_gb", "model.attention", "model.activation_checkpointing", "model.compile",
    "model.build", "model.init_from", "train.output", "train.stop_after",
    "train.micro_batch", "train.global_batch", "train.save_every", "train.keep_last", "train.keep_every",
    "train.log_every", "train.ds_config", "train.offload_dir", "train.resume", "train.allow_changes",
    "validation.every", "validation.split", "validation.windows", "validation.spans",
    "train.threads_per_rank", "train.start_timeout_seconds", "train.hang_timeout_seconds",
}  # fmt: skip
"""Fields that a resume may change without a word; the data are held by their fingerprint instead of their path."""


@dataclass(frozen=True)
class FieldInfo:
    """One field for flags and documentation: dotted name, type, default, text."""

    name: str
    type: Any
    default: Any
    text: str

    @property
    def shown_default(self) -> str:
        """The default as a flag takes it; "empty" for an empty list or text."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return str(self.default) if self.default not in ((), "") else "empty"


@cache
def field_infos() -> dict[str, FieldInfo]:
    """Every field by its dotted name, with the text under it in the source."""
    found = {}
    for section, cls in SECTIONS.items():
        hints, texts = typing.get_type_hints(cls), _field_texts(cls)
        for item in fields(cls):
            name = f"{section}.{item.name}"
            found[name] = FieldInfo(name, hints[item.name], item.default, texts[item.name])
    return found


def _field_texts(cls: type) -> dict[str, str]:
    """The string literal that follows each field in the class body."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    texts = {}
    for item, after in itertools.pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[item.target.id] = str(after.value.value)  # type: ignore[union-attr]
    return texts
