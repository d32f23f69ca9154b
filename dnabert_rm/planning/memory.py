"""Peak memory of one rank by ZeRO stage, as DeepSpeed 0.19 allocates it with our optimizer. Does not import torch.

The sizes of weights, gradients and optimizer states follow Rajbhandari et al., "ZeRO" (2020), section 3. In half
precision, weights take 2 bytes per parameter, gradients 2, and optimizer states 12. Stage 1 divides the optimizer
states among W ranks. Stage 2 also divides the gradients, and stage 3 also divides the weights.

The paper leaves out DeepSpeed's buffers, which dominate for small models. The buffer sizes come from DeepSpeed's code
(`runtime/zero/stage_1_and_2.py`, `stage3.py`, `partition_parameters.py`). The test
`tests/multiprocess/planning/test_planner_memory.py` compares the estimates with measurements on CPU ranks.

`rank_memory` computes the memory at several moments of a training step and returns the largest.

Symbols: P = number of parameters, W = number of ranks, w = bytes per value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dnabert_rm.config.deepspeed_config import ZeroSettings
from dnabert_rm.model.flops import ModelShape, num_parameters, parameter_tensors
from dnabert_rm.planning.activations import (
    FP32_BYTES,
    Workload,
    encoder_bytes,
    head_bytes,
    inner_gradient_bytes,
    last_inner_gradient_bytes,
    last_layer_bytes,
    layer_bytes,
    loss_bytes,
)

MOMENT_BYTES = 8
"""Bytes per parameter of AdamW's two fp32 moments."""
ALL_REDUCE_ELEMENTS = 500_000_000
"""Number of elements in DeepSpeed's all-reduce bucket without ZeRO."""


@dataclass(frozen=True)
class Memory:
    """Memory of one rank at one moment of a training step, in bytes.

    `weights` are the weights that the forward pass uses. `optimizer` holds fp32 master weights and moments. `buffers`
    holds DeepSpeed's buckets, gathered weights and temporary copies. `host` is the CPU memory that offload uses, and is
    not part of `total`.
    """

    moment: str
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Memory on the device: the sum of all parts except `host`, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `total` as a dictionary, with bytes rounded to integers."""
        values = {**asdict(self), "total": self.total}
        return {name: value if isinstance(value, str) else round(value) for name, value in values.items()}


def rank_memory(
    shape: ModelShape, work: Workload, zero: ZeroSettings, world_size: int, accumulation: int = 1
) -> Memory:
    """Return the peak memory of one of `world_size` ranks.

    In each step, a rank processes `accumulation` micro-batches like `work`.
    """
    sizes = _Sizes(shape, work, zero, world_size, accumulation)
    moments: list[Callable[[_Sizes], Memory]] = [_loss, _last_layer, _first_layer, _backward_ends, _update]
    if sizes.gathers:
        moments.append(_gathering)
    return max((moment(sizes) for moment in moments), key=lambda memory: memory.total)


class _Sizes:
    """Sizes used at several moments of a step, in bytes unless stated otherwise.

    `P` (all parameters), `part` (a rank's share of `P`) and `largest` (the largest parameter tensor) are numbers of
    elements.
    """

    def __init__(
        self, shape: ModelShape, work: Workload, zero: ZeroSettings, world_size: int, accumulation: int
    ) -> None:
        self.shape = shape
        self.work = work
        self.zero = zero
        self.world_size = world_size
        self.accumulation = accumulation
        w, stage = work.value_bytes, zero.stage
        tensors = [tensor for part in parameter_tensors(shape).values() for tensor in part]
        P = num_parameters(shape)
        part = P / world_size
        self.P = P
        self.part = part
        self.w = w
        self.half = w < FP32_BYTES
        self.offloaded = zero.offload_optimizer != "none"
        small = sum(count * numel for count, numel in tensors if numel <= zero.persistence_threshold)
        # A single rank gathers nothing, unless its weights are offloaded.
        self.gathers = stage == 3 and (world_size > 1 or zero.offload_weights != "none")
        # ZeRO-3 keeps small tensors whole on every rank.
        self.persistent = w * small if self.gathers else 0.0
        self.gatherable = w * min(P - small, zero.max_live)
        self.largest = max(numel for _, numel in tensors)
        states = part if stage else P
        master = FP32_BYTES if stage or self.half else 0
        self.optimizer = 0.0 if self.offloaded else states * (master + MOMENT_BYTES)
        self.weights = w * (part if stage == 3 else P)
        self.adds_in_fp32 = accumulation > 1 and zero.fp32_accumulation
        self.gradient_bytes = zero.gradient_bytes or (FP32_BYTES if self.adds_in_fp32 else w)
        self.grad_part = self.gradient_bytes * part
        # DeepSpeed adds fp32 gradients of stages 1 and 2 to one flat buffer, and updates from it without a copy.
        self.adds_in_partition = stage in (1, 2) and self.half and self.gradient_bytes == FP32_BYTES
        bucket_bytes = self.gradient_bytes if stage == 1 else w
        self.buckets = bucket_bytes * zero.reduce_bucket * (2 if zero.overlap and stage < 3 else 1) if stage else 0.0
        if self.offloaded and stage < 3:
            self.buckets += w * self.largest
        # DeepSpeed's stages 1 and 2 allocate their buckets at the first gradient and free them before the update.
        self.idle_buckets = self.buckets if stage < 3 else 0.0
        # `DeviceEngine` has one buffer for the whole run. In fp32 it takes the gradients of each micro-batch.
        self.adds_in_buffer = zero.flat_gradients and self.adds_in_fp32
        if zero.flat_gradients:
            self.buckets, self.idle_buckets = float(self.gradient_bytes * P), 0.0
        # The tied embedding has two gradients, from the input and from the decoder, before they are summed.
        self.tied = 2 * w * shape.vocab_size * shape.hidden_size
        self.flush = w * min(P, zero.reduce_bucket)
        self.host = _host_bytes(self)
        if stage == 3 and zero.offload_weights != "none":
            self.weights = 0.0

    def memory(self, moment: str, *, gradients: float = 0, activations: float = 0, buffers: float = 0) -> Memory:
        """Return the memory at a moment, including the states that are always allocated."""
        if self.zero.stage == 3 and not self.offloaded:
            gradients += self.grad_part  # allocated once, for the whole run
        return Memory(moment, self.weights, gradients, self.optimizer, activations, self.buckets + buffers, self.host)


def _host_bytes(sizes: _Sizes) -> float:
    """Return the bytes of CPU memory that offload uses on a rank, for weights, moments and gradients.

    States that are offloaded to a disk are not counted.
    """
    zero = sizes.zero
    host = 0.0
    if zero.offload_optimizer == "cpu":
        host += sizes.part * (2 * FP32_BYTES + MOMENT_BYTES) + sizes.grad_part
    if zero.stage == 3 and zero.offload_weights == "cpu":
        host += sizes.weights
    return host


def _full_gradients(sizes: _Sizes) -> float:
    """Return the bytes of all gradients at the end of a backward pass, or 0 in ZeRO stages 2 and 3."""
    if sizes.zero.stage >= 2:
        return 0.0
    return (sizes.w if sizes.zero.flat_gradients else sizes.gradient_bytes) * float(sizes.P)


def _own_gradients(sizes: _Sizes) -> float:
    """Return the bytes of a rank's gradient partition in stages 1 and 2.

    Return 0 in other stages, with offload, or if the partition is a part of the flat gradients.
    """
    zero = sizes.zero
    return sizes.grad_part if zero.stage in (1, 2) and not zero.flat_gradients and not sizes.offloaded else 0.0


def _earlier_gradients(sizes: _Sizes) -> float:
    """Return the bytes of the gradients accumulated from earlier micro-batches of the step."""
    if sizes.accumulation == 1 or sizes.adds_in_buffer:
        return 0.0
    return _full_gradients(sizes) or _own_gradients(sizes)


def _new_gradients(sizes: _Sizes) -> float:
    """Return the bytes of a rank's gradient partition of a micro-batch, if it is not added to earlier ones directly."""
    return 0.0 if sizes.accumulation > 1 and sizes.adds_in_partition else _own_gradients(sizes)


def _loss(sizes: _Sizes) -> Memory:
    """Return the memory when the backward pass starts: activations, the logits' gradient, and accumulated gradients."""
    shape, work = sizes.shape, sizes.work
    kept = encoder_bytes(shape, work) + head_bytes(shape, work)
    return sizes.memory(
        "the loss",
        gradients=_earlier_gradients(sizes),
        activations=kept + loss_bytes(shape, work),
        buffers=_gathered(sizes) - (sizes.idle_buckets if sizes.accumulation == 1 else 0),
    )


def _last_layer(sizes: _Sizes) -> Memory:
    """Return the memory in the backward pass of the last two layers: activations, and the head's gradients.

    The layer before the last can take more memory, because the last one computes most for masked tokens only.
    """
    shape, work = sizes.shape, sizes.work
    elements = shape.hidden_size * (shape.vocab_size + shape.hidden_size)
    gradients = _earlier_gradients(sizes)
    if not (sizes.accumulation > 1 and sizes.zero.stage < 2) or sizes.adds_in_buffer:
        gradients += sizes.w * elements + (_new_gradients(sizes) if _reduces_within(sizes, elements) else 0)
    kept = encoder_bytes(shape, work)
    recomputed = layer_bytes(shape, work) if work.checkpointing else 0
    before_last = kept - last_layer_bytes(shape, work) + recomputed + inner_gradient_bytes(shape, work)
    activations = max(kept + last_inner_gradient_bytes(shape, work), before_last)
    return sizes.memory(
        "the last layer backwards", gradients=gradients, activations=activations, buffers=_gathered(sizes)
    )


def _first_layer(sizes: _Sizes) -> Memory:
    """Return the memory in the first layer's backward pass.

    Only this layer's activations are left. All gradients except the embedding's have been computed.
    """
    shape, work = sizes.shape, sizes.work
    embedding = shape.vocab_size * shape.hidden_size
    gradients = max(0.0, _full_gradients(sizes) - sizes.w * embedding)
    temporary = 0.0
    if _moves_gradients_early(sizes):
        within = _reduces_within(sizes, sizes.P)
        gradients = _earlier_gradients(sizes) + (_new_gradients(sizes) if within else 0)
        temporary = sizes.flush if within else 0.0
    activations = layer_bytes(shape, work) + inner_gradient_bytes(shape, work)
    return sizes.memory("the first layer backwards", gradients=gradients, activations=activations, buffers=temporary)


def _reduces_within(sizes: _Sizes, elements: int) -> bool:
    """Return whether the reduce bucket fills up before `elements` gradient elements are computed.

    DeepSpeed reduces the gradients in a full bucket immediately.
    """
    return _moves_gradients_early(sizes) and sizes.zero.reduce_bucket < elements


def _moves_gradients_early(sizes: _Sizes) -> bool:
    """Return whether each new gradient moves to the reduce bucket immediately, so that no second copy exists."""
    zero = sizes.zero
    if zero.flat_gradients:
        return False
    return zero.stage >= 2 or (zero.stage == 1 and zero.overlap and sizes.accumulation == 1)


def _gathered(sizes: _Sizes) -> float:
    """Return the bytes of gathered weights that ZeRO-3 keeps until the backward pass.

    DeepSpeed's limits on live and reused parameters apply. Small tensors are kept in addition.
    """
    if not sizes.gathers:
        return 0.0
    return sizes.persistent + min(sizes.gatherable, sizes.w * sizes.zero.max_reuse)


def _gathering(sizes: _Sizes) -> Memory:
    """Return the memory in ZeRO-3's forward pass: activations, gathered weights, and a buffer to receive weights."""
    receiving = min(sizes.gatherable, sizes.w * max(sizes.zero.prefetch_bucket, sizes.largest))
    activations = encoder_bytes(sizes.shape, sizes.work)
    return sizes.memory(
        "the forward pass gathers weights", activations=activations, buffers=_gathered(sizes) + receiving
    )


def _backward_ends(sizes: _Sizes) -> Memory:
    """Return the memory at the end of the backward pass: gradients and reduction buffers, but no activations."""
    stage = sizes.zero.stage
    gradients = _full_gradients(sizes)
    temporary: float = sizes.tied
    if stage == 0 and (sizes.world_size > 1 or sizes.half):
        # DeepSpeed flattens the gradients to reduce them. Our `Engine` avoids this for a single rank in fp32.
        temporary = max(temporary, sizes.w * min(sizes.P, ALL_REDUCE_ELEMENTS))
    elif stage == 1 and not sizes.zero.flat_gradients:
        gradients = 0.0 if _moves_gradients_early(sizes) else gradients
        temporary = max(temporary, _own_gradients(sizes) + (sizes.flush if not gradients else 0))
    elif stage == 2:
        gradients = _new_gradients(sizes) + _earlier_gradients(sizes)
        temporary = max(temporary, sizes.flush)
    elif stage == 3:
        temporary = max(temporary, sizes.flush * (1 if sizes.work.on_gpu else 2)) + sizes.persistent
    return sizes.memory("the backward pass ends", gradients=gradients, buffers=temporary)


def _update(sizes: _Sizes) -> Memory:
    """Return the memory during the optimizer's update.

    The buffers hold the flattened fp32 gradients or, if larger, an fp64 copy of the largest gradient, made to
    compute the gradient norm.
    Fused AdamW needs no copy of its states.
    """
    stage = sizes.zero.stage
    if sizes.offloaded:
        return sizes.memory("the update")
    if stage == 0:
        copies = float(sizes.P * FP32_BYTES) if sizes.half else 0.0
        return sizes.memory("the update", gradients=sizes.w * sizes.P, buffers=copies)
    if sizes.zero.flat_gradients:
        copied = sizes.half and not sizes.adds_in_buffer
        return sizes.memory("the update", buffers=sizes.part * FP32_BYTES if copied else 0.0)
    elements = min(sizes.part, sizes.zero.sub_group) if stage == 3 else sizes.part
    bytes_per_gradient = sizes.gradient_bytes + (FP32_BYTES if sizes.half else 0)
    norm = 2 * FP32_BYTES * sizes.largest / (sizes.world_size if stage == 3 else 1)
    copies = norm if sizes.adds_in_partition else max(elements * max(bytes_per_gradient, FP32_BYTES), norm)
    return sizes.memory("the update", gradients=_own_gradients(sizes), buffers=copies - sizes.idle_buckets)
