"""`dnabert-rm plan`: memory by ZeRO stage, operations, time and messages of a run, estimated without running it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dnabert_rm.cli.run_flags import add_run_flags, run_config
from dnabert_rm.config import RunConfig
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

HELP = "estimate memory by ZeRO stage, FLOPs, time and messages of a run, and say which stage to choose"
EXAMPLE = "dnabert-rm plan --preset 3b --gpus 64 --gpu-memory 80 --gpu h100 --tokens 1e12"

NOT_NEEDED = "(not needed)"
"""Stands for the data and the output, which a plan can do without."""
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The hardware, and the flags of `pretrain`."""
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks of the run (default: 1)")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="memory of a GPU, as its maker names it: 80")
    parser.add_argument("--gpu", metavar="NAME", help="GPU, for its peak: h100, a100, l40s …; cpu: ranks on CPUs")
    parser.add_argument("--tokens", type=float, metavar="N", help="tokens to train on (default: the run's)")
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak that the run reaches (default: 0.4)"
    )
    parser.add_argument("--bandwidth", type=float, metavar="GB", help="gigabytes (10^9) a second that a GPU sends")
    parser.add_argument("--k", type=int, default=6, metavar="N", help="k-mers of the vocabulary (default: 6)")
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes, times in seconds")
    add_run_flags(parser, "[--gpus N] [--gpu-memory GB]")


def run(args: argparse.Namespace) -> None:
    """Print the plan."""
    config = run_config(args, {"train": {"output": NOT_NEEDED}, "data": {"path": [NOT_NEEDED]}})
    peak = _checked_peak(args)
    on_gpu = args.gpu != "cpu"
    job = make_job(config, _vocab_size(config, args.k), args.gpus, on_gpu)
    memory = args.gpu_memory * GIB if args.gpu_memory else None
    found = options(job, memory, config.train.ds_config)
    report = _report(args, config, job, found, peak)
    report["advice"] = advice(job, found, memory, config.train.ds_config)
    print(json.dumps(report) if args.json else _text(report))


def _checked_peak(args: argparse.Namespace) -> float | None:
    """The GPU's peak, None where it is not given; `ConfigError` for values that can't be."""
    least = {"--gpus": (args.gpus, 1), "--k": (args.k, 1)}
    above = {"--gpu-memory": args.gpu_memory, "--tokens": args.tokens, "--bandwidth": args.bandwidth, "--mfu": args.mfu}
    for flag, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"{flag} {value}: must be at least {bound}")
    for flag, given in above.items():
        if given is not None and not given > 0:
            raise ConfigError(f"{flag} {given:g}: must be above 0")
    if args.mfu > 1:
        raise ConfigError(f"--mfu {args.mfu:g}: is a share of the peak, at most 1")
    peak = peak_flops(args.gpu) if args.gpu not in (None, "cpu") else None
    if args.gpu not in (None, "cpu") and peak is None:
        raise ConfigError(f"--gpu {args.gpu}: is not in the table; choose one of {', '.join(known_gpus())}, or cpu")
    return peak


def _vocab_size(config: RunConfig, k: int) -> int:
    """The prepared data's vocabulary if they are named, else that of `k`."""
    first = config.data.path[0]
    return kmer.vocab_size(kmer.check_k(k)) if first == NOT_NEEDED else load_manifest(first).tokenizer.vocab_size


def _report(
    args: argparse.Namespace, config: RunConfig, job: Job, found: list[Option], peak: float | None
) -> dict[str, Any]:
    """Everything that is printed, as plain values."""
    shape, work, window = job.shape, job.work, job.work.window_tokens
    parts = parameter_counts(shape)
    training = training_flops_per_token(shape, window, job.masked)
    tokens = args.tokens or float(config.train.steps) * config.train.global_batch * window
    half = work.value_bytes == 2
    speed = peak * args.mfu if peak and half else None
    step = training * job.split.global_batch * window / args.gpus
    return {
        "estimate": True,
        "model": {"preset": args.preset, **vars(shape)},
        "parameters": {**parts, "total": sum(parts.values())},
        "run": {
            "gpus": args.gpus, "gpu": args.gpu, "global_batch": job.split.global_batch,
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
        "usable_bytes": args.gpu_memory * GIB * USABLE_SHARE if args.gpu_memory else None,
        "time": {
            "tokens": tokens, "peak_flops": peak if half else None, "mfu": args.mfu,
            "tokens_per_second": args.gpus * speed / training if speed else None,
            "step_seconds": step / speed if speed else None,
            "seconds": tokens * training / (args.gpus * speed) if speed else None,
        },
        "options": [_option(option, args.bandwidth, step / speed if speed else None) for option in found],
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
        f"{run['global_batch']} windows of {run['window']} tokens a step, {precision}, {run['attention']}, "
        f"activation checkpointing {'on' if again else 'off'}, {run['masked_fraction']:.1%} masked",
        f"FLOPs a token: {flops['training'] / 1e9:.3f} G in training, {flops['forward'] / 1e9:.3f} G forward; "
        f"{flops['training_with_full_head'] / 1e9:.3f} G with the head on all positions",
        _time_text(report["time"], run["gpu"]),
        "",
        "estimates, GiB a rank at the fullest moment of a step:",
        *_table(report["options"], run["ds_config"]),
        "",
        report["advice"],
    ]
    return "\n".join(lines)


def _time_text(time: dict[str, Any], gpu: str | None) -> str:
    if gpu == "cpu":
        return f"{time['tokens']:.3g} tokens; no peak is known for CPUs: the first steps tell (tokens_per_second)"
    if time["seconds"] is None:
        return f"{time['tokens']:.3g} tokens; for the time name the --gpu (in bf16 or fp16)"
    days = time["seconds"] / 86400
    return (
        f"{time['tokens']:.3g} tokens take {days:.1f} days ({days * 24:.0f} hours) if {time['mfu']:.0%} of "
        f"{time['peak_flops'] / 1e12:.0f} TFLOP/s is reached: {time['tokens_per_second']:,.0f} tokens/s, "
        f"{time['step_seconds']:.3g} s a step"
    )


def _table(rows: list[dict[str, Any]], configured: str) -> list[str]:
    """One line an option; `*` marks the configured one."""
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
        "*: the --ds-config of the run; micro-batch: the largest that fits; seconds: of the messages at --bandwidth; "
        "GB/s: to send them while a step computes",
    ]


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
