"""Command `dnabert-rm plan`: estimate a run's FLOPs and time, and memory and communication for each ZeRO stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dnabert_rm.cli.run_flags import RunCommand, RunFlags
from dnabert_rm.config import RunConfig
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.genome import kmer
from dnabert_rm.model.flops import (
    forward_flops_per_token,
    known_gpus,
    parameter_counts,
    peak_flops,
    training_flops_per_token,
)
from dnabert_rm.planning.planner import USABLE_SHARE, Job, Option, advice, make_job, options
from dnabert_rm.utils.errors import ConfigError

NOT_NEEDED = "(not needed)"
"""Placeholder for data.path and train.output: a plan needs neither."""
GIB = 2**30


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Flags of `plan`, in addition to the flags of a run configuration."""

    gpus: int = setting(1, metavar="N", minimum=1)
    """Number of ranks of the run."""
    gpu_memory: float | None = setting(None, metavar="GB", above=0)
    """Memory of a GPU in GB as its manufacturer states it, such as 80."""
    gpu: str | None = setting(None, metavar="NAME")
    """Name of the GPU, which sets the peak FLOP/s: h100, a100, l40s … or cpu for ranks on CPUs."""
    tokens: float | None = setting(None, metavar="N", above=0)
    """Number of tokens to train on; by default as in the run."""
    mfu: float = setting(0.4, metavar="SHARE", above=0, maximum=1)
    """Share of the peak FLOP/s that the run reaches."""
    bandwidth: float | None = setting(None, metavar="GB", above=0)
    """Gigabytes (10^9 bytes) per second that a GPU sends."""
    k: int = setting(6, metavar="N", minimum=1)
    """Bases per k-mer; sets the vocabulary size if --data is not given."""
    json: bool = False
    """Print one JSON object; sizes in bytes, times in seconds."""


def run(settings: PlanSettings, flags: RunFlags) -> None:
    """Print the plan as text or JSON."""
    config = flags.config({"train": {"output": NOT_NEEDED}, "data": {"path": [NOT_NEEDED]}})
    peak = _peak(settings.gpu)
    job = make_job(config, _vocab_size(config, settings.k), settings.gpus, settings.gpu != "cpu")
    memory = settings.gpu_memory * GIB if settings.gpu_memory else None
    found = options(job, memory, config.train.ds_config)
    report = _report(settings, flags.preset, config, job, found, peak)
    report["advice"] = advice(job, found, memory, config.train.ds_config)
    print(json.dumps(report) if settings.json else _text(report))


def _peak(gpu: str | None) -> float | None:
    """Return the peak FLOP/s of the GPU named `gpu`, or None if `gpu` is "cpu" or None."""
    if gpu in (None, "cpu"):
        return None
    if (peak := peak_flops(gpu)) is None:
        raise ConfigError(f"--gpu {gpu}: unknown GPU; choose one of {', '.join(known_gpus())}, or cpu")
    return peak


def _vocab_size(config: RunConfig, k: int) -> int:
    """Return the vocabulary size of the prepared data. If no data are given, return that of k-mers of `k` bases."""
    first = config.data.path[0]
    return kmer.vocab_size(kmer.check_k(k)) if first == NOT_NEEDED else load_manifest(first).tokenizer.vocab_size


def _report(
    settings: PlanSettings, preset: str, config: RunConfig, job: Job, found: list[Option], peak: float | None
) -> dict[str, Any]:
    """Return the plan as a dictionary of plain values, for JSON."""
    shape, work, window = job.shape, job.work, job.work.window_tokens
    parts = parameter_counts(shape)
    training = training_flops_per_token(shape, window, job.masked)
    tokens = settings.tokens or float(config.train.steps) * config.train.global_batch * window
    half = work.value_bytes == 2
    speed = peak * settings.mfu if peak and half else None
    step = training * job.split.global_batch * window / settings.gpus
    return {
        "estimate": True,
        "model": {"preset": preset, **vars(shape)},
        "parameters": {**parts, "total": sum(parts.values())},
        "run": {
            "gpus": settings.gpus, "gpu": settings.gpu, "global_batch": job.split.global_batch,
            "micro_batch": work.windows, "accumulation": job.accumulation, "window": window,
            "value_bytes": work.value_bytes, "attention": work.attention, "dropout": work.dropout,
            "activation_checkpointing": work.checkpointing, "masked_fraction": job.masked,
            "ds_config": config.train.ds_config,
        },
        "flops_per_token": {
            "forward": forward_flops_per_token(shape, window, job.masked),
            "training": training,
            "training_with_recomputation": training_flops_per_token(shape, window, job.masked, work.checkpointing),
            "training_with_full_head": training_flops_per_token(shape, window),
        },
        "flops_per_step_and_gpu": step,
        "usable_bytes": settings.gpu_memory * GIB * USABLE_SHARE if settings.gpu_memory else None,
        "time": {
            "tokens": tokens, "peak_flops": peak if half else None, "mfu": settings.mfu,
            "tokens_per_second": settings.gpus * speed / training if speed else None,
            "step_seconds": step / speed if speed else None,
            "seconds": tokens * training / (settings.gpus * speed) if speed else None,
        },
        "options": [_option(option, settings.bandwidth, step / speed if speed else None) for option in found],
    }  # fmt: skip


def _option(option: Option, bandwidth: float | None, step_seconds: float | None) -> dict[str, Any]:
    sent = option.message_bytes
    return {
        "ds_config": option.name,
        "stage": option.zero.stage,
        "memory": option.memory.to_dict(),
        "fits": option.fits,
        "largest_micro_batch": option.largest_micro_batch,
        "message_bytes": round(sent),
        "message_seconds": sent / (bandwidth * 1e9) if bandwidth else None,
        "bandwidth_to_hide": sent / step_seconds if step_seconds else None,
    }


def _text(report: dict[str, Any]) -> str:
    model, parameters, run, flops = (report[name] for name in ("model", "parameters", "run", "flops_per_token"))
    precision, again = "fp32" if run["value_bytes"] == 4 else "bf16 or fp16", run["activation_checkpointing"]
    parts = ", ".join(f"{part} {count:,}" for part, count in parameters.items() if part != "total")
    lines = [
        f"{model['preset']} ({model['architecture']}): {parameters['total']:,} parameters ({parts})",
        f"{run['gpus']} ranks x {run['micro_batch']} windows x {run['accumulation']} accumulation = "
        f"{run['global_batch']} windows of {run['window']} tokens per step, {precision}, {run['attention']}, "
        f"activation checkpointing {'on' if again else 'off'}, {run['masked_fraction']:.1%} masked",
        f"FLOPs per token: {flops['training'] / 1e9:.3f} G in training, {flops['forward'] / 1e9:.3f} G forward; "
        f"{flops['training_with_full_head'] / 1e9:.3f} G with the head on all positions",
        _time_text(report["time"], run["gpu"]),
        "",
        "estimated GiB per rank at the memory peak of a step:",
        *_table(report["options"], run["ds_config"]),
        "",
        report["advice"],
    ]
    return "\n".join(lines)


def _time_text(time: dict[str, Any], gpu: str | None) -> str:
    if gpu == "cpu":
        tokens = f"{time['tokens']:.3g} tokens"
        return f"{tokens}; no estimate of the time on CPUs: see tokens_per_second after the first steps"
    if time["seconds"] is None:
        return f"{time['tokens']:.3g} tokens; pass --gpu, with bf16 or fp16, to estimate the time"
    days = time["seconds"] / 86400
    return (
        f"{time['tokens']:.3g} tokens take {days:.1f} days ({days * 24:.0f} hours) if {time['mfu']:.0%} of "
        f"{time['peak_flops'] / 1e12:.0f} TFLOP/s is reached: {time['tokens_per_second']:,.0f} tokens/s, "
        f"{time['step_seconds']:.3g} s per step"
    )


def _table(rows: list[dict[str, Any]], configured: str) -> list[str]:
    """Return the table as lines: a header, one line per option, and a legend. `*` marks the configured option."""
    parts = ("weights", "gradients", "optimizer", "activations", "buffers", "total", "host")
    heads = ("ds-config", *parts, "fits", "micro-batch", "GB sent", "seconds", "GB/s")
    lines = [heads]
    for row in rows:
        cells = [row["ds_config"] + ("*" if row["ds_config"] == configured else "")]
        cells += [f"{row['memory'][part] / GIB:.2f}" for part in parts]
        cells += [{True: "yes", False: "no", None: "?"}[row["fits"]], _number(row["largest_micro_batch"], "d")]
        cells += [_number(row["message_bytes"] / 1e9, ".2f"), _number(row["message_seconds"], ".3f")]
        cells += [_number(row["bandwidth_to_hide"] and row["bandwidth_to_hide"] / 1e9, ".1f")]
        lines.append(tuple(cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return [
        *table,
        "*: the --ds-config of the run; micro-batch: the largest that fits; seconds: communication at --bandwidth; "
        "GB/s: bandwidth at which communication takes as long as the computation of a step",
    ]


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


COMMAND = RunCommand(
    name="plan",
    help="estimate a run's memory by ZeRO stage, FLOPs, time and communication, and advise on the stage",
    example="dnabert-rm plan --preset 3b --gpus 64 --gpu-memory 80 --gpu h100 --tokens 1e12",
    settings=PlanSettings,
    run=run,
    usage="[--gpus N] [--gpu-memory GB]",
)
