"""Roofline model of a training step: predict its time on a GPU, and what bounds it. Does not import torch.

Each part of a step takes the time of its matrix products or of its memory traffic at the rate that the GPU reaches:

- linear layers and attention: operations / operations per second;
- elementwise operations, head and loss, optimizer: bytes / bytes per second;
- host: launching operations, which happens while the GPU computes;
- communication: bytes sent / bandwidth.

All predictions are estimates, in half precision only. The rates are assumed for an H100 and scaled by data sheets to
other GPUs. Each constant says where it comes from. *Measured*: counted or timed on a CPU. *Assumed*: from publications
or derived, and not yet measured on a GPU. Source of the method: Williams et al., "Roofline" (2009).

Symbols: H = hidden size, I = intermediate size, L = tokens per window, M = masked tokens, V = vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnabert_rm.config.deepspeed_config import ZeroSettings
from dnabert_rm.model.flops import (
    attended_tokens,
    head_flops_per_token,
    layer_flops_per_token,
    num_parameters,
    peak_flops,
    short_name,
)
from dnabert_rm.planning.planner import Job, message_bytes

MEMORY_BANDWIDTH = {
    "gb200": 8.0e12,
    "b200": 8.0e12,
    "gh200": 4.0e12,
    "h200 nvl": 4.8e12,
    "h200": 4.8e12,
    "h100 nvl": 3.9e12,
    "h100 pcie": 2.0e12,
    "h100": 3.35e12,
    "h800": 3.35e12,
    "a100": 2.0e12,
    "a800": 2.0e12,
    "a40": 0.696e12,
    "a30": 0.933e12,
    "a10": 0.6e12,
    "a6000": 0.768e12,
    "rtx 6000 ada": 0.96e12,
    "l40s": 0.864e12,
    "l40": 0.864e12,
    "l4": 0.3e12,
    "rtx 4090": 1.008e12,
    "rtx 3090": 0.936e12,
    "v100": 0.9e12,
    "t4": 0.32e12,
}
"""Nominal memory bandwidth of each of `known_gpus()` in bytes per second, from data sheets (A100: 80 GB)."""

H100_PEAK = 989.4e12
"""Peak operations per second of the H100 whose reached rates are below (data sheet)."""
H100_REACHED_BANDWIDTH = 3.0e12
"""Bytes per second that elementwise kernels reach on an H100. Assumed; 90 % of the nominal 3.35 TB/s."""
WIDE_PRODUCTS = 662e12
"""Operations per second that linear layers on an H100 approach as H grows. Assumed.

`WIDE_PRODUCTS` and `HALF_RATE_WIDTH` are the curve through two assumed points: 560 TFLOP/s at H = 768 (range 480 to
620), and 620 TFLOP/s at H = 2048 (range 620 to 710). For comparison, 756 TFLOP/s were measured for a large product.
"""
HALF_RATE_WIDTH = 140.7
"""Width H at which linear layers reach half of `WIDE_PRODUCTS`. Assumed, see there."""
FLASH_ATTENTION = 204e12
"""Operations per second of flash attention 2 on an H100, forward + backward. Assumed: 9.1 ms for `base`, 64 x 512."""
CUDNN_ATTENTION = 343e12
"""Operations per second of cuDNN's attention on an H100. Assumed: 5.4 ms for `base`, 64 windows of 512 tokens."""
ATTENTION_DROPOUT_FACTOR = 1.3
"""Factor on the time of attention with dropout of its probabilities. Assumed: 11.8 ms in place of 9.1."""
MATRIX_BYTES = 32
"""Traffic per attention probability if attention is not fused, forward + backward. Assumed."""

ELEMENTWISE_BYTES = {
    ("bert", False): (36, 78),
    ("bert", True): (36, 74),
    ("modernbert", False): (163, 242),
    ("modernbert", True): (64, 63),
}
"""Traffic of a layer's elementwise operations by (architecture, compiled): bytes per token and unit of H.

The first number is for the forward pass, the second for the backward pass. Measured (counted) in bf16 without dropout,
with I = 4H for bert and I = 2.7H for modernbert.
"""
DROPOUT_BYTES = {False: 10, True: 4}
"""Traffic per value that hidden dropout applies to, forward + backward, by compiled.

Compiled: measured, 8 bytes for bert's two values per unit of H. Eager: assumed. Each pass reads and writes bf16 values,
and writes or reads a mask of 1 byte.
"""
LOGIT_BYTES = 36
"""Traffic per logit (M x V of them): decoder's output, copy to fp32, log-softmax, and their gradients. Assumed."""
HEAD_BYTES = 100
"""Traffic per masked token and unit of H: gather, GELU, norm, and their gradients. Assumed."""
UPDATE_BYTES = 32
"""Traffic per parameter of AdamW's update of fp32 weights, divided among the ranks by ZeRO. Assumed."""
FLAT_GRADIENT_BYTES = 15
"""Traffic per parameter for the flat gradients, their norm and the bf16 weights. Assumed: 1.4 ms in all for `base`."""
BUCKET_GRADIENT_BYTES = 39
"""`FLAT_GRADIENT_BYTES` for DeepSpeed's own buckets and checks. Assumed: 2.1 ms in all for `base`."""
ACCUMULATE_BYTES = 6
"""Traffic per parameter for adding the gradients of one more micro-batch. Derived: read two, write one."""
ACCUMULATE_FP32_BYTES = 10
"""`ACCUMULATE_BYTES` for a sum in fp32. Derived: read a bf16 and an fp32 value, write an fp32 value."""
BUSY_SHARE = 0.97
"""Share of the device's time in which a kernel runs, if the host is fast. Chosen to match an estimate by hand."""

LAYERS_MEASURED = 12
"""Number of layers at which the `HOST_*` times were measured. They are taken as proportional to the layers.

The count of operations grows so, and is the same for bert and modernbert: 134 and 135 per layer, views included.
"""
HOST_FLAT = 0.025
"""Host seconds for 585 operations of a micro-batch and update by `DeviceEngine`: 43 us each. Measured on a CPU."""
HOST_BUCKETS = 0.044
"""Host seconds for about 1,700 operations with DeepSpeed's own stages 1 and 2. Measured on a CPU, at stage 1: 43 ms."""
HOST_STAGE_3 = 0.108
"""Host seconds for 1,498 operations of ZeRO-3, including its hooks. Measured on a CPU."""
COMPILED_HOST_SHARE = 0.5
"""Share of the host's time that compiled layers leave, as fewer operations are launched. Assumed."""
HIDDEN_SHARE_STAGE_3 = 0.5
"""Share of ZeRO-3's host time that passes while the device computes. Assumed; 1 in other stages."""
OFFLOAD_BANDWIDTH = 25e9
"""Bytes per second between GPU and host: 2 bytes of gradient and 2 of weight per offloaded parameter. Assumed."""
OFFLOAD_UPDATE = 50e9
"""Bytes per second of the CPU's memory for a rank's offloaded update, with `UPDATE_BYTES` each. Assumed."""

PRODUCTS = "products"
MEMORY_TRAFFIC = "memory traffic"
HOST = "host"
NETWORK = "network"
DEVICE = "device"


@dataclass(frozen=True)
class Device:
    """Rates of a GPU.

    `peak_flops` is the data sheet's peak, and `products` its ratio to the H100's. `bandwidth` is the memory bandwidth
    that elementwise kernels reach, in bytes per second.
    """

    name: str
    peak_flops: float
    products: float
    bandwidth: float


@dataclass(frozen=True)
class StepTime:
    """Predicted time of one optimizer step of one rank.

    `seconds_by_part` holds each part alone. The parts do not add up to `seconds`, since some pass at the same time.
    `compute_seconds` leaves out communication. `bound_by` is "products", "memory traffic", "host" or "network".
    """

    seconds_by_part: dict[str, float]
    compute_seconds: float
    seconds: float
    bound_by: str


def device(gpu: str) -> Device | None:
    """Return the rates of the GPU named `gpu`, or None if the GPU is not in the table of `model.flops`."""
    name, peak = short_name(gpu), peak_flops(gpu)
    if name is None or peak is None:
        return None
    reached = H100_REACHED_BANDWIDTH * MEMORY_BANDWIDTH[name] / MEMORY_BANDWIDTH["h100"]
    return Device(name, peak, peak / H100_PEAK, reached)


def products_rate(hidden_size: int) -> float:
    """Return the operations per second of linear layers of width H on an H100: WIDE · H / (H + HALF_RATE_WIDTH)."""
    return WIDE_PRODUCTS * hidden_size / (hidden_size + HALF_RATE_WIDTH)


def step_time(
    job: Job,
    zero: ZeroSettings,
    gpu: Device,
    *,
    hidden_dropout: float,
    attention_dropout: float,
    cudnn: bool = False,
    compiled: bool = False,
    bandwidth: float | None = None,
) -> StepTime:
    """Return the predicted time of a step of `job`, with all micro-batches of a rank and one update.

    `bandwidth` is the number of bytes per second that a GPU sends. Without it, communication is not counted. Layers
    are not compiled under ZeRO-3, whatever `compiled` is.

    The host works while the device computes, except for half of its time under ZeRO-3. With `overlap_comm`, stages 2
    and 3 communicate while the device computes. Otherwise communication follows the computation.
    """
    compiled = compiled and zero.stage < 3
    parts = {
        "linear": _linear(job, gpu),
        "attention": _attention(job, gpu, attention_dropout, cudnn),
        "elementwise": _elementwise(job, gpu, hidden_dropout, compiled),
        "head": _head(job, gpu),
        "optimizer": _optimizer(job, zero, gpu),
    }
    busy = sum(parts.values())
    parts["gaps"] = busy / BUSY_SHARE - busy
    parts["host"] = _host(job, zero, compiled)
    parts["offload"] = _offloaded(job, zero)
    parts["communication"] = message_bytes(job, zero) / bandwidth if bandwidth else 0.0
    hidden = parts["host"] * (HIDDEN_SHARE_STAGE_3 if zero.stage == 3 else 1.0)
    overlapped = parts["communication"] if zero.stage >= 2 and zero.overlap else 0.0
    waits = {HOST: parts["host"] - hidden + parts["offload"], NETWORK: parts["communication"] - overlapped}
    tracks = {DEVICE: busy + parts["gaps"], HOST: hidden, NETWORK: overlapped}
    compute = max(tracks[DEVICE], hidden) + waits[HOST]
    return StepTime(parts, compute, max(tracks.values()) + sum(waits.values()), _bound(parts, tracks, waits))


def _bound(parts: dict[str, float], tracks: dict[str, float], waits: dict[str, float]) -> str:
    """Return the name of what takes the largest share of a step.

    `tracks` hold the seconds of what passes at the same time: only the longest counts. `waits` hold the seconds of what
    nothing else overlaps.
    """
    longest = max(tracks, key=lambda name: tracks[name])
    shares = {name: waits[name] + (tracks[name] if name == longest else 0.0) for name in waits}
    if longest == DEVICE:
        shares[PRODUCTS] = parts["linear"] + parts["attention"]
        shares[MEMORY_TRAFFIC] = parts["elementwise"] + parts["head"] + parts["optimizer"]
    return max(shares, key=lambda name: shares[name])


def _tokens(job: Job) -> int:
    """Return the number of tokens of a rank in a step."""
    return job.work.tokens * job.accumulation


def _passes(job: Job) -> float:
    """Return the passes through the layers in units of a forward and backward pass. A recomputed pass is a third."""
    return 4 / 3 if job.work.checkpointing else 1.0


def _linear(job: Job, gpu: Device) -> float:
    shape, L = job.shape, job.work.window_tokens
    per_token = layer_flops_per_token(shape, L, job.masked) - 4 * shape.hidden_size * attended_tokens(shape, L)
    return 3 * per_token * _tokens(job) * _passes(job) / (products_rate(shape.hidden_size) * gpu.products)


def _attention(job: Job, gpu: Device, dropout: float, cudnn: bool) -> float:
    """Return the seconds of attention. A kernel that is not fused also moves its whole matrix through memory."""
    shape, L = job.shape, job.work.window_tokens
    operations = 3 * 4 * shape.hidden_size * attended_tokens(shape, L) * _tokens(job) * _passes(job)
    factor = ATTENTION_DROPOUT_FACTOR if dropout else 1.0
    seconds = factor * operations / ((CUDNN_ATTENTION if cudnn else FLASH_ATTENTION) * gpu.products)
    if job.work.attention == "eager":
        entries = _tokens(job) * L * shape.num_heads * shape.num_layers
        seconds += factor * MATRIX_BYTES * entries * _passes(job) / gpu.bandwidth
    return seconds


def _elementwise(job: Job, gpu: Device, dropout: float, compiled: bool) -> float:
    shape, architecture = job.shape, "bert" if job.shape.architecture == "bert" else "modernbert"
    forward, backward = ELEMENTWISE_BYTES[architecture, compiled]
    # bert drops out two outputs of width H, modernbert one of width H and one of width I.
    dropped = 2.0 if architecture == "bert" else 1 + shape.intermediate_size / shape.hidden_size
    masks = dropped * DROPOUT_BYTES[compiled] / 2 if dropout else 0.0
    passes = 2 if job.work.checkpointing else 1
    layers = shape.num_layers - 1 + job.masked  # the last layer has few tokens behind its attention
    values = _tokens(job) * shape.hidden_size * layers
    return (passes * (forward + masks) + backward + masks) * values / gpu.bandwidth


def _head(job: Job, gpu: Device) -> float:
    shape, masked = job.shape, _tokens(job) * job.masked
    products = 3 * head_flops_per_token(shape) * masked / (products_rate(shape.hidden_size) * gpu.products)
    traffic = masked * (LOGIT_BYTES * shape.vocab_size + HEAD_BYTES * shape.hidden_size)
    return products + traffic / gpu.bandwidth


def _optimizer(job: Job, zero: ZeroSettings, gpu: Device) -> float:
    """Return the seconds that gradients and the update take on the device."""
    states = 1 / job.split.world_size if zero.stage else 1.0
    gradients = FLAT_GRADIENT_BYTES if zero.flat_gradients else BUCKET_GRADIENT_BYTES
    update = 0.0 if zero.offload_optimizer != "none" else UPDATE_BYTES * states
    adding = ACCUMULATE_FP32_BYTES if zero.fp32_accumulation else ACCUMULATE_BYTES
    accumulated = adding * (job.accumulation - 1)
    return num_parameters(job.shape) * (update + gradients + accumulated) / gpu.bandwidth


def _offloaded(job: Job, zero: ZeroSettings) -> float:
    """Return the seconds of an update on the CPU, with its copies."""
    if zero.offload_optimizer == "none":
        return 0.0
    return num_parameters(job.shape) / job.split.world_size * (4 / OFFLOAD_BANDWIDTH + UPDATE_BYTES / OFFLOAD_UPDATE)


def _host(job: Job, zero: ZeroSettings, compiled: bool) -> float:
    measured = HOST_STAGE_3 if zero.stage == 3 else HOST_FLAT if zero.flat_gradients else HOST_BUCKETS
    share = COMPILED_HOST_SHARE if compiled else 1.0
    return measured * share * job.shape.num_layers / LAYERS_MEASURED * job.accumulation * _passes(job)
