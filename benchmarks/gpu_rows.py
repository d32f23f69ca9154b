"""Rows that `gpu.py` measures, the most important first. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from setting import Setting

FLASH = "flash_attention_2"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a name, a function in contenders.py, and its setting."""

    name: str
    function: str
    setting: Setting


def make_rows(data: str) -> list[Row]:
    """Return all rows on the prepared folder `data`, the most important first."""
    return [
        _row(data, "base", "base", 64),
        _row(data, "base, 256 windows", "base", 256),
        _row(data, "base, Hugging Face Trainer", "base", 64, function="hugging_face_trainer"),
        _row(data, "base, bare loop", "base", 64, function="bare_loop"),
        _row(data, "base, 256 windows, compiled", "base", 256, compile=True),
        _row(data, "1b, 32 windows, compiled", "1b", 32, compile=True),
        _row(data, "1b, compiled", "1b", 16, compile=True),
        _row(data, "base, compiled", "base", 64, compile=True),
        _row(data, "base, flash_attention_2", "base", 64, attention=FLASH),
        _row(data, "base, ZeRO-3", "base", 64, "zero3"),
        _row(data, "base, no dropout", "base", 64, dropout=0.0),
        _row(data, "small, compiled", "small", 256, compile=True),
        _row(data, "1b", "1b", 16),
        _row(data, "base, compiled, no dropout", "base", 64, compile=True, dropout=0.0),
        _row(data, "1b, ZeRO-3", "1b", 16, "zero3"),
        _row(data, "base, synthetic", "base", 64, synthetic=True),
        _row(data, "large, compiled", "large", 32, compile=True),
        _row(data, "base, modernbert, compiled", "base", 64, architecture="modernbert", compile=True),
        _row(data, "base, ZeRO-2", "base", 64, "zero2"),
        _row(data, "1b, checkpointing", "1b", 64, activation_checkpointing=True),
        _row(data, "base, eager attention", "base", 64, attention="eager"),
        _row(data, "base, 16 windows", "base", 16),
        _row(data, "large", "large", 32),
        _row(data, "small", "small", 256),
        _row(data, "base, modernbert", "base", 64, architecture="modernbert"),
        _row(data, "base, fp16", "base", 64, precision="fp16"),
        _row(data, "base, fp32, ZeRO-0", "base", 64, "zero0", precision="fp32"),
    ]


def _row(
    data: str,
    name: str,
    preset: str,
    windows: int,
    zero: str = "zero1",
    *,
    function: str = "ours",
    precision: str = "bf16",
    synthetic: bool = False,
    **model: Any,
) -> Row:
    fields = {"model": model, "train": {"ds_config": zero}}
    setting = Setting(
        data,
        preset,
        precision,
        device="cuda",
        windows=windows,
        tokens=512,
        threads=0,
        synthetic=synthetic,
        fields=fields,
    )
    return Row(name, function, setting)


def shrink(rows: Iterable[Row]) -> list[Row]:
    """Return rows for a rehearsal on a CPU: `tiny`, four short windows, one row for each path through the code."""
    unique: dict[str, Row] = {}
    for row in rows:
        model = {name: value for name, value in row.setting.fields["model"].items() if name != "dropout"}
        small = dataclasses.replace(
            row.setting,
            fields={**row.setting.fields, "model": model},
            preset="tiny",
            device="cpu",
            windows=4,
            tokens=64,
            threads=1,
        )
        # The compiled modernbert covers the plain one, and ZeRO-2 uses the code of ZeRO-1.
        if row.name not in ("base, modernbert", "base, ZeRO-2"):
            unique.setdefault(f"{row.function} {small}", Row(row.name, row.function, small))
    return list(unique.values())
