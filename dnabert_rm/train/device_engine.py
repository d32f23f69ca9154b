"""Engine that never waits for the device: flat gradients, and an update that the device itself can skip.

It serves ZeRO-1 in bf16 or fp32, and fp32 without ZeRO (`updates_on_device` in `config/deepspeed_config.py`). It
replaces some parts of DeepSpeed, which `ds_settings` turns off: gradient hooks, gradient norm, clipping, and the check
for inf and NaN. DeepSpeed still owns the master weights, the update, the gathering of the updated weights, and the
checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.patches.deepspeed_patches import keep_flat_weights, set_zero1_gradients
from dnabert_rm.train.engine import Engine

NORM_PIECE = 1 << 18
"""Number of values in a piece of a gradient, for the norm on a CPU."""


class DeviceEngine(Engine):
    """Engine that queues the update of a step without reading a value from the device.

    Torch's fused AdamW skips the update if its attribute `found_inf` is 1, and divides all gradients by its attribute
    `grad_scale`. Torch's `GradScaler` uses the same attributes.
    """

    def __init__(
        self, module: MaskedLM, optimizer: torch.optim.Optimizer, settings: dict[str, Any], ranks: Ranks, clip: float
    ) -> None:
        """Wrap `module` and a fused AdamW. `clip` is the largest global gradient norm; 0 means no clipping."""
        super().__init__(module, optimizer, settings, ranks)
        self._adam: Any = optimizer
        self._clip = clip
        self._failed = torch.zeros((), dtype=torch.bool, device=ranks.device)
        zero1 = None if self.deepspeed.optimizer is optimizer else self.deepspeed.optimizer
        accumulates = settings.get("gradient_accumulation_steps", 1) > 1
        self._gradients = FlatGradients(zero1, ranks, accumulates) if zero1 else AllGradients(self)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the module's forward pass, without DeepSpeed's hooks for the backward pass."""
        return self.module(*inputs)

    def backward(self, loss_sum: Tensor, divisor: Tensor, is_last: bool) -> None:
        """Add the gradient of `loss_sum / divisor` to the gradients accumulated in this step."""
        (loss_sum * (self._gradients.loss_factor / divisor.to(loss_sum.dtype))).backward()
        self._gradients.collect(is_last)

    def update(self, sums: Tensor) -> Tensor:
        """Queue the update of a step. `Engine.update` describes the argument and the result."""
        self.deepspeed.set_gradient_accumulation_boundary(True)
        totals = torch.cat([sums, self._gradients.sum_over_ranks().double().reshape(1)])
        if self.ranks.world_size > 1:
            dist.all_reduce(totals)
        norm = totals[-1].sqrt_()
        self._failed |= ~totals[0].isfinite()
        is_skipped = self._failed | ~norm.isfinite()
        self._adam.found_inf = is_skipped.float()
        if self._clip:
            self._adam.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1.0).float()
        self.deepspeed.step()
        return torch.cat([totals, is_skipped.double().reshape(1)])

    def record_skipped(self, num_skipped: int) -> int:
        """Record skipped updates, also in DeepSpeed's counter, which is saved in checkpoints."""
        self.deepspeed.skipped_steps = super().record_skipped(num_skipped)
        return self.num_skipped


class AllGradients:
    """Gradients without ZeRO: every rank keeps all of them. DeepSpeed averages them over the ranks."""

    def __init__(self, engine: Engine) -> None:
        """Prepare the gradients of the engine's module."""
        self._deepspeed = engine.deepspeed
        self._parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
        self._world_size = engine.ranks.world_size
        self.loss_factor = float(self._world_size)
        """Factor of the loss that turns the average over ranks into a sum."""

    def collect(self, is_last: bool) -> None:
        """Do nothing: the parameters keep their fp32 gradients, to which torch adds those of the next micro-batch."""

    def sum_over_ranks(self) -> Tensor:
        """Sum the gradients over the ranks. Return this rank's share of the squared global norm, a scalar."""
        if self._world_size > 1:
            self._deepspeed.allreduce_gradients()
        return squared_norm([p.grad for p in self._parameters if p.grad is not None]) / self._world_size


class FlatGradients:
    """Gradients under ZeRO-1, in one flat buffer for each parameter group of DeepSpeed's optimizer.

    A step of 12 layers takes 577 operations, and 1,665 in DeepSpeed's own way: there, a hook for each parameter copies
    its gradient to a bucket. Here, one operation copies the gradients of a group, and one collective sums them.

    The gradients of several micro-batches are added in fp32, as sums of many bf16 values are inexact. The buffers of
    such a run are fp32, and so is the sum over the ranks.
    """

    loss_factor = 1.0
    """Factor of the loss. The ranks' gradients are summed, not averaged."""

    def __init__(self, zero1: Any, ranks: Ranks, accumulates: bool) -> None:
        """Allocate the buffers. The parameters of `zero1` are views of its flat weights, one tensor per group.

        `accumulates` says whether any step of the run has more than one micro-batch on a rank.
        """
        keep_flat_weights(zero1)
        self._zero1 = zero1
        self._ranks = ranks
        self._parameters: list[list[nn.Parameter]] = zero1.bit16_groups
        dtype = torch.float32 if accumulates else zero1.bit16_groups_flat[0].dtype
        self._buffers: list[Tensor] = [torch.zeros_like(flat, dtype=dtype) for flat in zero1.bit16_groups_flat]
        self._adds = accumulates and zero1.bit16_groups_flat[0].dtype != dtype
        self._is_empty = True
        self._views = [
            [_view_like(parameter, weights, buffer) for parameter in group]
            for group, weights, buffer in zip(self._parameters, zero1.bit16_groups_flat, self._buffers, strict=True)
        ]

    def collect(self, is_last: bool) -> None:
        """Move the gradients of a micro-batch from the parameters to the buffers, and add them to those of the step.

        In fp32, the parameters add them up instead, and only the last micro-batch of a step moves them.
        """
        if self._adds or is_last:
            for parameters, views in zip(self._parameters, self._views, strict=True):
                _move_gradients(parameters, views, replace=self._is_empty)
            self._is_empty = False

    def sum_over_ranks(self) -> Tensor:
        """Sum the gradients over the ranks, and give DeepSpeed this rank's partition of each group.

        Returns this rank's share of the squared global norm, a scalar.
        """
        parts = [_reduce_scatter(buffer, self._ranks) for buffer in self._buffers]
        self._is_empty = True
        set_zero1_gradients(self._zero1, parts)
        return squared_norm(parts)


def _view_like(parameter: nn.Parameter, weights: Tensor, buffer: Tensor) -> Tensor:
    """Return the view of `buffer` that has the place of `parameter` in the flat `weights`."""
    start = parameter.storage_offset() - weights.storage_offset()
    return buffer[start : start + parameter.numel()].view(parameter.shape)


@torch.no_grad()
def _move_gradients(parameters: list[nn.Parameter], views: list[Tensor], replace: bool) -> None:
    """Copy the gradients to `views`, or add them, and free them. A parameter without a gradient counts as zeros."""
    filled, gradients = [], []
    for parameter, view in zip(parameters, views, strict=True):
        if parameter.grad is not None:
            filled.append(view)
            gradients.append(parameter.grad)
            parameter.grad = None
        elif replace:
            view.zero_()
    if replace:
        torch._foreach_copy_(filled, gradients)
    else:
        torch._foreach_add_(filled, gradients)


def _reduce_scatter(buffer: Tensor, ranks: Ranks) -> Tensor:
    """Sum `buffer` over the ranks and return this rank's part of the sum, a view of `buffer`.

    The other parts are undefined afterwards.
    """
    part = buffer.chunk(ranks.world_size)[ranks.rank]
    if ranks.world_size > 1 and dist.get_backend() == "nccl":
        # Newer versions of torch warn about the older name.
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        reduce_scatter(part, buffer)
    elif ranks.world_size > 1:  # gloo has no reduce-scatter in place
        dist.all_reduce(buffer)
    return part


def squared_norm(tensors: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all values in `tensors`, as a scalar on their device.

    On a CPU, torch's norm of a long float32 vector is wrong by up to 2e-4. Dot products of pieces are wrong by 4e-6,
    and nine times as fast as the norm in float64.
    """
    if tensors[0].device.type != "cpu":
        return torch.stack([torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]).square().sum()
    pieces = (piece.float() for tensor in tensors for piece in tensor.reshape(-1).split(NORM_PIECE))
    return torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum()
