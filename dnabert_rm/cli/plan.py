"""Command `dnabert-rm plan`: estimate a run's FLOPs and time, and memory and communication for each ZeRO stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dnabert_rm.cli.run_flags import RunCommand, RunFlags
from dnabert_rm.config import RunConfig
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.data.batching import describe_batch, make_batch_plan
from dnabert_rm.data.dataset import NUM_SPECIAL_PER_WINDOW
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.sampler import mean_tokens
from dnabert_rm.genome import kmer
from dnabert_rm.model.flops import (
    forward_flops_per_token,
    known_gpus,
    parameter_counts,
    training_flops_per_token,
)
from dnabert_rm.planning.planner import USABLE_SHARE, Job, StageEstimate, advice, estimate_stages, make_job
from dnabert_rm.planning.roofline import Device, device, step_time
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
    mfu: float | None = setting(None, metavar="SHARE", above=0, maximum=1)
    """Share of the peak FLOP/s that the run reaches; by default predicted by a roofline model."""
    bandwidth: float | None = setting(None, metavar="GB", above=0)
    """Gigabytes (10^9 bytes) per second that a GPU sends. Without it, the time leaves out communication."""
    k: int = setting(6, metavar="N", minimum=1)
    """Bases per k-mer; sets the vocabulary size if --data is not given."""
    json: bool = False
    """Print one JSON object; sizes in bytes, times in seconds."""


def run(settings: PlanSettings, flags: RunFlags) -> None:
    """Print the plan as text or JSON."""
    config = flags.config({"train": {"output": NOT_NEEDED}, "data": {"path": [NOT_NEEDED]}})
    gpu = _device(settings.gpu)
    job = make_job(config, _vocab_size(config, settings.k), settings.gpus, settings.gpu != "cpu")
    memory = settings.gpu_memory * GIB if settings.gpu_memory else None
    found = estimate_stages(job, memory, config.train.ds_config)
    report = _report(settings, flags.preset, config, job, found, gpu)
    report["advice"] = advice(job, found, memory, config.train.ds_config)
    print(json.dumps(report) if settings.json else _text(report))


def _device(gpu: str | None) -> Device | None:
    """Return the rates of the GPU named `gpu`, or None if `gpu` is "cpu" or None."""
    if gpu is None or gpu == "cpu":
        return None
    if (found := device(gpu)) is None:
        raise ConfigError(f"--gpu {gpu}: unknown GPU; choose one of {', '.join(known_gpus())}, or cpu")
    return found


def _vocab_size(config: RunConfig, k: int) -> int:
    """Return the vocabulary size of the prepared data, or of a k-mer vocabulary with `k` if no data are given."""
    first = config.data.path[0]
    return kmer.vocab_size(kmer.check_k(k)) if first == NOT_NEEDED else load_manifest(first).tokenizer.vocab_size


def _report(
    settings: PlanSettings, preset: str, config: RunConfig, job: Job, found: list[StageEstimate], gpu: Device | None
) -> dict[str, Any]:
    """Return the plan as a dictionary of plain values, for JSON."""
    shape, work, window = job.shape, job.work, job.work.window_tokens
    parts = parameter_counts(shape)
    training = training_flops_per_token(shape, window, job.masked)
    tokens = settings.tokens or _tokens_of_run(config)
    step = training * job.split.global_batch * window / settings.gpus
    modelled = gpu if work.value_bytes == 2 else None
    times = {option.name: _time(settings, config, job, option, modelled, tokens) for option in found}
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
            "tokens": tokens, "peak_flops": modelled.peak_flops if modelled else None,
            "mfu_is_given": settings.mfu is not None, **times[config.train.ds_config],
        },
        "options": [_option(option, settings.bandwidth, times[option.name]) for option in found],
    }  # fmt: skip


def _tokens_of_run(config: RunConfig) -> float:
    """Return the expected number of tokens in all windows of a run, [CLS] and [SEP] included."""
    num_windows, window = make_batch_plan(config).first_sample(config.train.steps), config.data.window
    is_full = config.data.lengths == "full"
    special = NUM_SPECIAL_PER_WINDOW
    return float(num_windows * (window if is_full else mean_tokens(window - special) + special))


def _time(
    settings: PlanSettings, config: RunConfig, job: Job, option: StageEstimate, gpu: Device | None, tokens: float
) -> dict[str, Any]:
    """Return the estimated time of a step and of the run, with all values None if there is no GPU to estimate for."""
    names = ("step_seconds", "compute_seconds", "tokens_per_second", "seconds", "mfu", "seconds_by_part", "bound_by")
    if gpu is None:
        return dict.fromkeys(names)
    window = job.work.window_tokens
    step_tokens = job.split.global_batch * window
    ideal = training_flops_per_token(job.shape, window, job.masked) * step_tokens / (settings.gpus * gpu.peak_flops)
    values: tuple[float, float, dict[str, float] | None, str | None]
    if settings.mfu is not None:
        values = (ideal / settings.mfu, ideal / settings.mfu, None, None)
    else:
        bandwidth = settings.bandwidth * 1e9 if settings.bandwidth else None
        step = step_time(job, option.zero, gpu, bandwidth=bandwidth, **_kernels(config))
        values = (step.seconds, step.compute_seconds, step.seconds_by_part, step.bound_by)
    seconds, compute, parts, bound = values
    speed = step_tokens / seconds
    return dict(zip(names, (seconds, compute, speed, tokens / speed, ideal / seconds, parts, bound), strict=True))


def _kernels(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of `step_time` that the configuration of the model sets."""
    model = config.model
    auto_compiled = model.compile == "auto" and model.architecture == "modernbert"
    return {
        "hidden_dropout": model.dropout,
        "attention_dropout": model.dropout_of_attention,
        "cudnn": model.attention in ("auto", "cudnn") and not config.train.deterministic,
        "compiled": model.compile == "true" or auto_compiled,
    }


def _option(option: StageEstimate, bandwidth: float | None, time: dict[str, Any]) -> dict[str, Any]:
    sent, compute = option.message_bytes, time["compute_seconds"]
    return {
        "ds_config": option.name,
        "stage": option.zero.stage,
        "memory": option.memory.to_dict(),
        "fits": option.fits,
        "largest_micro_batch": option.largest_micro_batch,
        "message_bytes": round(sent),
        "message_seconds": sent / (bandwidth * 1e9) if bandwidth else None,
        "bandwidth_to_hide": sent / compute if compute else None,
        **time,
    }


def _text(report: dict[str, Any]) -> str:
    model, parameters, run, flops = (report[name] for name in ("model", "parameters", "run", "flops_per_token"))
    precision, again = "fp32" if run["value_bytes"] == 4 else "bf16 or fp16", run["activation_checkpointing"]
    parts = ", ".join(f"{part} {count:,}" for part, count in parameters.items() if part != "total")
    lines = [
        f"{model['preset']} ({model['architecture']}): {parameters['total']:,} parameters ({parts})",
        f"{describe_batch(run['gpus'], run['micro_batch'], run['accumulation'])} = "
        f"{run['global_batch']} windows of {run['window']} tokens per step, {precision}, {run['attention']}, "
        f"activation checkpointing {'on' if again else 'off'}, {run['masked_fraction']:.1%} masked",
        f"FLOPs per token: {flops['training'] / 1e9:.3f} G in training, {flops['forward'] / 1e9:.3f} G forward; "
        f"{flops['training_with_full_head'] / 1e9:.3f} G with the head on all positions",
        _time_text(report["time"], run),
        "",
        "estimated GiB per rank at the memory peak of a step:",
        *_table(report["options"], run["ds_config"]),
        *_time_table(report, run),
        "",
        report["advice"],
    ]
    return "\n".join(lines)


def _time_text(time: dict[str, Any], run: dict[str, Any]) -> str:
    if run["gpu"] == "cpu":
        tokens = f"{time['tokens']:.3g} tokens"
        return f"{tokens}; no estimate of the time on CPUs: see tokens_per_second after the first steps"
    if time["seconds"] is None:
        return f"{time['tokens']:.3g} tokens; pass --gpu, with bf16 or fp16, to estimate the time"
    days, peak = time["seconds"] / 86400, f"{time['mfu']:.0%} of {time['peak_flops'] / 1e12:.0f} TFLOP/s"
    reason = f"if {peak} is reached" if time["mfu_is_given"] else f"with {run['ds_config']}, at {peak}"
    return (
        f"{time['tokens']:.3g} tokens take an estimated {days:.1f} days ({days * 24:.0f} hours) {reason}: "
        f"{time['tokens_per_second']:,.0f} tokens/s, {time['step_seconds']:.3g} s per step"
    )


def _table(rows: list[dict[str, Any]], configured: str) -> list[str]:
    """Return the table of memory: a header, one line per option, and a legend. `*` marks the configured option.

    Columns without any value are left out, such as the time of messages without a bandwidth.
    """
    parts = ("weights", "gradients", "optimizer", "activations", "buffers", "total", "host")
    lines: list[tuple[str, ...]] = [("ds-config", *parts, "fits", "micro-batch", "GB sent", "seconds", "GB/s")]
    for row in rows:
        cells = [_marked(row, configured), *(f"{row['memory'][part] / GIB:.2f}" for part in parts)]
        cells += [{True: "yes", False: "no", None: "?"}[row["fits"]], _number(row["largest_micro_batch"], "d")]
        cells += [_number(row["message_bytes"] / 1e9, ".2f"), _number(row["message_seconds"], ".3f")]
        cells += [_number(row["bandwidth_to_hide"] and row["bandwidth_to_hide"] / 1e9, ".1f")]
        lines.append(tuple(cells))
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"?"}]
    legend = {
        "ds-config": "*: the --ds-config of the run",
        "micro-batch": "micro-batch: the largest that fits",
        "seconds": "seconds: communication at --bandwidth",
        "GB/s": "GB/s: bandwidth at which communication takes as long as the computation of a step",
    }
    titles = [column[0] for column in columns]
    return [
        *_aligned(list(zip(*columns, strict=True))),
        "; ".join(text for title, text in legend.items() if title in titles),
    ]


def _time_table(report: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Return the table of times with the title and the legend, or nothing if there is no time or `--mfu` is given."""
    rows = report["options"]
    if rows[0]["seconds_by_part"] is None:
        return []
    parts = tuple(rows[0]["seconds_by_part"])
    lines: list[tuple[str, ...]] = [("ds-config", "step", "tokens/s", "MFU", "days", "bound by", *parts)]
    for row in rows:
        cells = [_marked(row, run["ds_config"]), f"{row['step_seconds'] * 1e3:.1f}", f"{row['tokens_per_second']:,.0f}"]
        cells += [f"{row['mfu']:.0%}", f"{row['seconds'] / 86400:.1f}", row["bound_by"]]
        lines.append((*cells, *(f"{row['seconds_by_part'][part] * 1e3:.1f}" for part in parts)))
    unknown = run["gpus"] > 1 and rows[0]["message_seconds"] is None
    return [
        "",
        f"estimated milliseconds per step on {run['gpu']}, from a roofline model that is not yet measured on GPUs:",
        *_aligned(lines),
        "some parts overlap, so they do not add up to the step"
        + ("; communication is not counted: pass --bandwidth" if unknown else ""),
    ]


def _marked(row: dict[str, Any], configured: str) -> str:
    return str(row["ds_config"]) + ("*" if row["ds_config"] == configured else "")


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


COMMAND = RunCommand(
    name="plan",
    help="estimate a run's FLOPs and time, and memory and communication for each ZeRO stage; recommend a stage",
    example="dnabert-rm plan --preset 3b --gpus 64 --gpu-memory 80 --gpu h100 --tokens 1e12",
    settings=PlanSettings,
    run=run,
    usage="[--gpus N] [--gpu-memory GB]",
)
