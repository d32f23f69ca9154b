"""What `gpu.py` measures, in the order of worth. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from setting import Setting

FLASH = "flash_attention_2"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a name, a function in contenders.py, and what it is given."""

    name: str
    function: str
    setting: Setting


def make_rows(data: str) -> list[Row]:
    """All rows, the most wanted first."""

    def row(
        name: str, preset: str, windows: int, zero: str = "zero1", *, function: str = "ours", precision: str = "bf16",
        train: dict[str, Any] | None = None, synthetic: bool = False, **model: Any,
    ) -> Row:  # fmt: skip
        fields = {"model": model, "train": {"ds_config": zero, **(train or {})}}
        return Row(name, function, Setting(data, preset, precision, "cuda", windows, 512, 0, synthetic, fields))

    return [
        row("base", "base", 64),
        row("base, 256 windows", "base", 256),
        row("base, Hugging Face Trainer", "base", 64, function="hugging_face_trainer"),
        row("base, bare loop", "base", 64, function="bare_loop"),
        row("base, 256 windows, compiled", "base", 256, compile=True),
        row("1b, 32 windows, compiled", "1b", 32, compile=True),
        row("1b, compiled", "1b", 16, compile=True),
        row("base, compiled", "base", 64, compile=True),
        row("base, flash_attention_2", "base", 64, attention=FLASH),
        row("base, ZeRO-3", "base", 64, "zero3"),
        row("base, no dropout", "base", 64, dropout=0.0),
        row("small, compiled", "small", 256, compile=True),
        row("1b", "1b", 16),
        row("base, compiled, no dropout", "base", 64, compile=True, dropout=0.0),
        row("1b, ZeRO-3", "1b", 16, "zero3"),
        row("base, synthetic", "base", 64, synthetic=True),
        row("large, compiled", "large", 32, compile=True),
        row("base, modernbert, compiled", "base", 64, architecture="modernbert", compile=True),
        row("base, ZeRO-2", "base", 64, "zero2"),
        row("1b, checkpointing", "1b", 64, activation_checkpointing=True),
        row("base, eager attention", "base", 64, attention="eager"),
        row("base, 16 windows", "base", 16),
        row("large", "large", 32),
        row("small", "small", 256),
        row("base, modernbert", "base", 64, architecture="modernbert"),
        row("base, fp16", "base", 64, precision="fp16"),
        row("base, fp32, ZeRO-0", "base", 64, "zero0", precision="fp32"),
    ]


def shrink(rows: Iterable[Row]) -> list[Row]:
    """The rows for a rehearsal on a CPU: `tiny`, four short windows, and one row for each way through the code."""
    found: dict[str, Row] = {}
    for row in rows:
        model = {name: value for name, value in row.setting.fields["model"].items() if name != "dropout"}
        small = dataclasses.replace(
            row.setting, fields={**row.setting.fields, "model": model},
            preset="tiny", device="cpu", windows=4, tokens=64, threads=1,
        )  # fmt: skip
        # A modernbert that is compiled stands for one that is not, and ZeRO-2 is ZeRO-1's code.
        if row.name not in ("base, modernbert", "base, ZeRO-2"):
            found.setdefault(f"{row.function} {small}", Row(row.name, row.function, small))
    return list(found.values())
