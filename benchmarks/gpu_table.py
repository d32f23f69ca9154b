"""Figures of a row, and the table that `gpu.py` prints."""

from __future__ import annotations

from statistics import median
from typing import Any

from gpu_rows import Row
from workers import Lap

from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.model.flops import model_shape, peak_flops, training_flops_per_step

PEAK = peak_flops("h100") or 0.0
"""Peak FLOP/s for the MFU: data sheet of an H100 or H200 (SXM), bf16."""
LOW_FLOPS = 500e12
"""With slower matrix products than this, `base` can't pass an MFU of about 37 %."""
DEVICE_PREDICTIONS = {
    "base": "predicted 480 to 620",
    "1b": "predicted 620 to 710",
    "add": "predicted 4 to 7",
}


def busy(traced: Lap, seconds: float) -> dict[str, Any]:
    """Return the kernels' share of a step's `seconds`, the launches per step and the longest kernels.

    They show whether the GPU or the host is the bottleneck.
    """
    kernels = sorted(((spent, calls, name) for name, (spent, calls) in traced.kernels.items()), reverse=True)
    return {
        "gpu_busy_share": sum(spent for spent, _, _ in kernels) / traced.steps / seconds,
        "launches_a_step": sum(calls for _, calls, _ in kernels) / traced.steps,
        "longest_kernels": [
            {"kernel": name[:80], "milliseconds_a_step": 1000 * spent / traced.steps, "launches": calls / traced.steps}
            for spent, calls, name in kernels[:8]
        ],
    }


def figures(row: Row, laps: list[Lap]) -> dict[str, Any]:
    """Return rates, FLOP/s and memory of a row; the figures are those of the median lap."""
    setting = row.setting
    seconds = median(lap.wall / lap.steps for lap in laps)
    masked = laps[-1].parts.get("masked", 0.0) / laps[-1].steps
    # FLOPs that the row itself needs: ours predicts only masked tokens, transformers predicts all tokens.
    predicted = masked if row.trains_ours else setting.windows * setting.tokens
    shape = model_shape(setting.config("unused").model, vocab_size(6))
    flops = training_flops_per_step(shape, setting.windows, setting.tokens, predicted) / seconds
    rates = [setting.windows * setting.tokens * lap.steps / lap.wall for lap in laps]
    result = {
        "preset": setting.preset,
        "precision": setting.precision,
        "windows": setting.windows,
        "tokens": setting.tokens,
        "fields": setting.fields,
        "own_engine": setting.own_engine,
        "synthetic": setting.synthetic,
        "steps": laps[0].steps,
        "predicted_milliseconds": list(row.predicted),
        "milliseconds_a_step": 1000 * seconds,
        "tokens_per_second": median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
        "tflops": flops / 1e12,
        "host_milliseconds_a_step": 1000 * median(lap.processor / lap.steps for lap in laps),
        "peak_gigabytes": max(lap.peak_bytes for lap in laps) / 1e9,
        "first_loss": laps[0].first_loss,
    }
    if setting.precision != "fp32":
        result["mfu"] = flops / PEAK
    if row.trains_ours:
        result["data_wait_share"] = sum(lap.parts["data wait"] for lap in laps) / sum(lap.wall for lap in laps)
    return result


def best_flops(device: dict[str, Any], preset: str) -> float:
    """Return the best rate of matrix products of a preset's shapes."""
    products = device["products_flops"].items()
    return max(rate for name, rates in products if name.startswith(f"{preset},") for rate in rates.values())


def device_note(device: dict[str, Any]) -> str:
    """Return a sentence if the matrix products are too slow for the target, otherwise an empty string."""
    best = best_flops(device, "base")
    if best >= LOW_FLOPS:
        return ""
    return (
        f"the best matrix product of base's shapes reaches {best / 1e12:.0f} TFLOP/s, below {LOW_FLOPS / 1e12:.0f}: "
        "base can't pass about 37 % MFU"
    )


def as_text(report: dict[str, Any]) -> str:
    """Return the tables."""
    lines = []
    if report["rehearsal"]:
        lines.append("REHEARSAL on a CPU with a tiny model: the figures are meaningless")
    if device := report.get("device"):
        lines += _device_lines(device)
    lines += report["notes"]
    lines += [f"{'ok' if check['holds'] else 'FAILED':<7}{check['check']}" for check in report["checks"]]
    lines.append(
        f"{'':<38}{'predicted':>10}{'ms/step':>9}{'tokens/s':>10}{'MFU':>7}{'GPU busy':>9}{'launches':>9}{'GB':>7}"
    )
    lines += [_row_line(row) for row in report["rows"]]
    for key, reason in (("left_out", "left out by the rule"), ("skipped", "no time left for")):
        if report[key]:
            lines.append(f"{reason}: {'; '.join(report[key])}")
    return "\n".join(lines)


def _device_lines(device: dict[str, Any]) -> list[str]:
    lines = [f"{device['device']}; matrix products in bf16, TFLOP/s"]
    for name, rates in device["products_flops"].items():
        expected = DEVICE_PREDICTIONS.get(name.partition(",")[0], "")
        found = ", ".join(f"{kind} {rate / 1e12:.0f}" for kind, rate in rates.items())
        lines.append(f"  {name:<24}{found:<42}{expected}")
    lines.append("attention of a layer of base, forward and backward, milliseconds")
    for name, time in device["attention_milliseconds"].items():
        lines.append(f"  {name:<24}{time if isinstance(time, str) else f'{time:.3f}'}")
    adds = device["add_microseconds"]
    expected = DEVICE_PREDICTIONS["add"]
    lines.append(f"small addition, microseconds: host {adds['host']:.1f}, device {adds['device']:.1f} ({expected})")
    return lines


def _row_line(row: dict[str, Any]) -> str:
    expected = "-".join(f"{value:g}" for value in row.get("predicted_milliseconds", ()))
    if reason := row.get("failed") or row.get("not_at_hand"):
        kind = "FAILED" if "failed" in row else "not at hand"
        return f"{row['row']:<38}{kind}: {reason[:88]}"
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
    return (
        f"{row['row']:<38}{expected:>10}{row['milliseconds_a_step']:>9.1f}{row['tokens_per_second']:>10.0f}{mfu:>7}"
        f"{row['gpu_busy_share']:>9.0%}{row['launches_a_step']:>9.0f}{row['peak_gigabytes']:>7.1f}"
    )
