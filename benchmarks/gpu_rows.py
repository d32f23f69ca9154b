"""Rows that `gpu.py` measures, in this order, with predictions and the rules that leave rows out. Torch-free."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from typing import Any

from setting import Setting

OURS = "gpu_session:ours"
DEVICE = "0 device"
"""The row with the rates of the device itself."""
DECIDING = "3 base, flat gradients, late reads"
"""The row that shows whether the GPU waits for the host."""
AFTER_DECIDING = ("5 ", "6 ", "7 ", "8 ")
"""Starts of the names of rows that say little if the GPU waits for the host."""
DECIDING_SECONDS = 0.066
DECIDING_BUSY = 0.9


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a name, a function ("module:name"), and its setting."""

    name: str
    function: str
    setting: Setting
    group: str
    """Rows next to each other with the same group share a process."""
    predicted: tuple[float, ...] = ()
    """Predicted milliseconds a step on an H100: one number, or the ends of a range."""
    package: str = ""
    """Package that the row needs; without it the row is "not at hand"."""
    has_laps: bool = True
    """Whether the row trains in laps. Otherwise its function returns a result."""

    @property
    def trains_ours(self) -> bool:
        """Whether the row runs this project's training, whose head predicts masked tokens only."""
        return self.function == OURS

    @property
    def is_at_hand(self) -> bool:
        """Whether the package that the row needs is installed."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def host_is_limit(seconds_a_step: float, gpu_busy_share: float) -> bool:
    """Return whether the GPU still waits for the host in the deciding row."""
    return not (seconds_a_step < DECIDING_SECONDS and gpu_busy_share >= DECIDING_BUSY)


def make_rows(data: str, few: str) -> list[Row]:
    """Return all rows, the most important first.

    `data` is the prepared folder of the timed rows. `few` has few windows, so that a short training lowers the loss.
    """
    return [*_steps_to_the_target(data), *_checks_and_peers(data, few), *_other_rows(data)]


def _steps_to_the_target(data: str) -> list[Row]:
    """Return the device's rates, and the rows that each change one thing."""
    plain: dict[str, Any] = {"compile": False, "attention": "sdpa"}
    compiled = plain | {"compile": True}
    no_attention_dropout = compiled | {"attention_dropout": 0.0}
    cudnn = no_attention_dropout | {"attention": "cudnn"}
    no_dropout = cudnn | {"dropout": 0.0}
    as_before = {"zero_optimization": {"overlap_comm": True}, "timers": {"throughput": {"enabled": True}}}
    no_waits = {"zero_optimization": {"overlap_comm": False}}
    large = {"compile": True, "attention": "cudnn"}
    return [
        _value(data, DEVICE, "gpu_device:measure_device", "base"),
        _row(data, "1 base, DeepSpeed's engine", "base", 64, 73, own_engine=False, deepspeed=as_before, **plain),
        _row(data, "2 without timer and overlap", "base", 64, 72, own_engine=False, deepspeed=no_waits, **plain),
        _row(data, DECIDING, "base", 64, 60, **plain),
        _value(data, "3 a steady step reads nothing back", "gpu_checks:steady_step", "base", model=plain),
        _row(data, "4 base, compiled", "base", 64, 57, **compiled),
        _row(data, "5 attention dropout 0", "base", 64, 54, **no_attention_dropout),
        _row(data, "6 cuDNN attention", "base", 64, 50.5, **cudnn),
        _row(data, "7 no dropout, 256 windows", "base", 256, 190, **no_dropout),
        _row(data, "8 no dropout, 4 x 64 windows", "base", 256, 195, micro_batch=64, **no_dropout),
        _row(data, "9 1b, compiled, 16 windows", "1b", 16, 129, **compiled),
        _row(data, "9 1b, compiled, cuDNN, 32 windows", "1b", 32, 232, **large),
        _row(data, "9 1b, compiled, cuDNN, 64 windows", "1b", 64, 447, **large),
    ]


def _checks_and_peers(data: str, few: str) -> list[Row]:
    """Return the checks of correctness, the peers, ZeRO-3 and float8."""
    plain: dict[str, Any] = {"compile": False, "attention": "sdpa"}
    uncompiled = {"compile": False}
    peers = {"function": "hugging_face_trainer", "group": "peers"}
    return [
        _value(data, "10 two runs are the same", "gpu_checks:two_runs", "two runs", model=uncompiled),
        _value(
            data,
            "10 two runs with train.deterministic are the same",
            "gpu_checks:two_runs",
            "two deterministic runs",
            model=uncompiled,
            train={"deterministic": True},
        ),
        _value(few, "10 correctness", "gpu_checks:check_training", "checks", preset="tiny", tokens=64, windows=4),
        _row(data, "11 Hugging Face Trainer", "base", 64, (75, 90), **peers, **plain),
        _row(data, "11 bare loop", "base", 64, (75, 90), **peers | {"function": "bare_loop"}, **plain),
        _row(data, "12 base, ZeRO-3", "base", 64, (115, 140), zero="zero3", **plain),
        _row(
            data,
            "13 1b, compiled, float8, 64 windows",
            "1b",
            64,
            (358, 389),
            float8=True,
            package="torchao",
            compile=True,
            attention="cudnn",
        ),
    ]


def _other_rows(data: str) -> list[Row]:
    """Return further sizes, architectures, kernels, stages and precisions, measured if time is left."""
    plain: dict[str, Any] = {"compile": False, "attention": "sdpa"}
    compiled = plain | {"compile": True}
    flash = {"compile": False, "attention": "flash_attention_2", "package": "flash_attn"}
    return [
        _row(data, "base, one resident batch", "base", 64, synthetic=True, **plain),
        _row(data, "base, 256 windows", "base", 256, **plain),
        _row(data, "base, modernbert, compiled", "base", 64, architecture="modernbert", **compiled),
        _row(data, "small, compiled", "small", 256, **compiled),
        _row(data, "small", "small", 256, **plain),
        _row(data, "large, compiled", "large", 32, **compiled),
        _row(data, "large", "large", 32, **plain),
        _row(data, "1b", "1b", 16, **plain),
        _row(data, "1b, checkpointing", "1b", 64, activation_checkpointing=True, **plain),
        _row(data, "1b, ZeRO-3", "1b", 16, zero="zero3", **plain),
        _row(data, "base, ZeRO-2", "base", 64, zero="zero2", **plain),
        _row(data, "base, modernbert", "base", 64, architecture="modernbert", **plain),
        _row(data, "base, 16 windows", "base", 16, **plain),
        _row(data, "base, eager attention", "base", 64, compile=False, attention="eager"),
        _row(data, "base, fp16", "base", 64, precision="fp16", **plain),
        _row(data, "base, fp32, ZeRO-0", "base", 64, zero="zero0", precision="fp32", **plain),
        _row(data, "base, flash_attention_2", "base", 64, **flash),
    ]


def _row(
    data: str,
    name: str,
    preset: str,
    windows: int,
    predicted: float | tuple[float, ...] = (),
    *,
    function: str = "ours",
    group: str = "",
    zero: str = "zero1",
    precision: str = "bf16",
    package: str = "",
    micro_batch: int = 0,
    deepspeed: dict[str, Any] | None = None,
    own_engine: bool = True,
    synthetic: bool = False,
    float8: bool = False,
    **model: Any,
) -> Row:
    fields = {"model": model, "train": {"ds_config": zero, "micro_batch": micro_batch}}
    setting = Setting(
        data,
        preset,
        precision,
        device="cuda",
        windows=windows,
        synthetic=synthetic,
        fields=fields,
        deepspeed_changes=deepspeed or {},
        own_engine=own_engine,
        float8=float8,
    )
    # DeepSpeed keeps a ZeRO-3 engine alive, so it gets a process of its own.
    group = group or (f"{preset}, ZeRO-3" if zero == "zero3" else preset)
    expected = predicted if isinstance(predicted, tuple) else (predicted,)
    return Row(name, f"gpu_session:{function}", setting, group, expected, package)


def _value(
    data: str,
    name: str,
    function: str,
    group: str,
    *,
    preset: str = "base",
    windows: int = 16,
    tokens: int = 512,
    **fields: dict[str, Any],
) -> Row:
    fields["train"] = {"ds_config": "zero1"} | fields.get("train", {})
    setting = Setting(data, preset, "bf16", device="cuda", windows=windows, tokens=tokens, fields=fields)
    return Row(name, function, setting, group, has_laps=False)


SAME_ON_A_CPU = ("base, modernbert", "base, ZeRO-2")
"""Rows that a rehearsal leaves out: a compiled modernbert covers the plain one, and ZeRO-2 uses the code of ZeRO-1."""


def shrink(rows: Iterable[Row]) -> list[Row]:
    """Return rows for a rehearsal on a CPU: `tiny`, four short windows, one row for each path through the code."""
    unique: dict[str, Row] = {}
    for row in rows:
        setting = row.setting
        model = {name: value for name, value in setting.fields.get("model", {}).items() if name != "dropout"}
        if model.get("attention") == "cudnn":  # a kernel of GPUs
            model["attention"] = "sdpa"
        micro_batch = min(2, setting.fields["train"].get("micro_batch", 0))
        fields = {"model": model, "train": {**setting.fields["train"], "micro_batch": micro_batch}}
        small = dataclasses.replace(
            setting, fields=fields, preset="tiny", device="cpu", windows=4, tokens=64, threads=1
        )
        if row.name not in SAME_ON_A_CPU:
            unique.setdefault(f"{row.function} {small}", dataclasses.replace(row, setting=small))
    return list(unique.values())
