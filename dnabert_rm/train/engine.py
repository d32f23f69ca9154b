"""Training engine: forward and backward passes, and the update of the weights by DeepSpeed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dnabert_rm.distributed.collectives import sum_over_ranks
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.model.kernels import uncompiled_layers
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.patches.deepspeed_patches import fuse_overflow_check, import_deepspeed
from dnabert_rm.train.async_transfer import HostToDevice
from dnabert_rm.train.step_result import BatchCounts


class Engine:
    """DeepSpeed engine that trains a `MaskedLM` on all ranks.

    DeepSpeed sums the gradients and updates the weights. `DeviceEngine` is faster, but supports fewer configurations.
    """

    def __init__(
        self, module: MaskedLM, optimizer: torch.optim.Optimizer, settings: dict[str, Any], ranks: Ranks
    ) -> None:
        """Wrap `module` and `optimizer` in a DeepSpeed engine configured by `settings`.

        ZeRO-3 partitions the module here, unless the module was built partitioned.
        """
        self.deepspeed, *_ = import_deepspeed().initialize(model=module, optimizer=optimizer, config=settings)
        fuse_overflow_check(self.deepspeed.optimizer)
        self.ranks = ranks
        self.k = module.k
        self.counts_to_device = HostToDevice(len(BatchCounts._fields), ranks.device)
        self.flags_to_device = HostToDevice(2, ranks.device)
        self.num_skipped = 0
        """Number of updates that were skipped because a gradient was inf or NaN, in this run and before a resume."""
        self._has_failed = False

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Run the module's forward pass."""
        return self.deepspeed(*inputs)

    def backward(self, loss_sum: torch.Tensor, divisor: torch.Tensor, is_last: bool) -> None:
        """Add the gradient of `loss_sum / divisor` to the gradients accumulated in this step.

        DeepSpeed divides the loss by the number of accumulation steps and averages gradients over ranks. To cancel
        both, this method multiplies the loss by the number of accumulation steps and by the number of ranks. The
        gradient of a global batch therefore does not depend on how the global batch is split.

        Args:
            loss_sum: Scalar, the loss summed over the masked tokens of one batch on this rank.
            divisor: Scalar, the sum of the weights of the masked tokens in the global batch.
            is_last: Whether this is the step's last batch on this rank. DeepSpeed's own batch counter is not used,
                because it is wrong after the number of batches per step has changed.
        """
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        undo = self.deepspeed.gradient_accumulation_steps() * self.ranks.world_size
        self.deepspeed.backward(loss_sum * (undo / divisor.to(loss_sum.dtype)))
        if not is_last:
            self.deepspeed.step()  # counts the batch

    def update(self, sums: torch.Tensor) -> torch.Tensor:
        """Update the weights after the last batch of a step, unless the step has failed. Call this on all ranks.

        Args:
            sums: (S,) float64, sums over this rank's batches. The first is the training loss.

        Returns: (S + 2,) float64: `sums` over all ranks, the global gradient norm before clipping, and the number of
            updates that were skipped because a gradient was inf or NaN (0 or 1). If the summed loss is inf or NaN,
            the weights are not updated in this step, nor in any later step.
        """
        totals = sum_over_ranks(sums, self.ranks)
        self._has_failed = self._has_failed or not math.isfinite(float(totals[0]))
        norm, num_skipped = float("nan"), 0
        if not self._has_failed:
            skipped_before = self.deepspeed.skipped_steps
            self.deepspeed.step()
            found = self.deepspeed.get_global_grad_norm()
            norm = norm if found is None else float(found)
            num_skipped = self.deepspeed.skipped_steps - skipped_before
        return torch.cat([totals, totals.new_tensor([norm, num_skipped])])

    def record_skipped(self, num_skipped: int) -> int:
        """Record updates that `update` has reported as skipped, in the order of the steps.

        Returns the number of updates skipped so far. DeepSpeed may have counted those of later steps already.
        """
        self.num_skipped += num_skipped
        return self.num_skipped

    def set_accumulation(self, num_batches: int) -> None:
        """Set how many batches this rank runs in the next step. The number changes during a batch-size warm-up."""
        micro_batch = self.deepspeed.train_micro_batch_size_per_gpu()
        self.deepspeed.set_train_batch_size(micro_batch * num_batches * self.ranks.world_size)

    def set_base_share(self, share: float) -> None:
        """Set the fraction of the training loss that is the loss over bases, from 0 to 1."""
        self.deepspeed.module.base_share = share

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context for forward passes without dropout and gradients, in which layers run uncompiled and without FP8."""
        self.deepspeed.eval()
        with torch.no_grad(), uncompiled_layers(self.module):
            yield
        self.deepspeed.train()

    @property
    def module(self) -> nn.Module:
        """The wrapped module. Under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module

    @property
    def loss_scale(self) -> float | None:
        """Loss scale for fp16, or None for other precisions."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(scaler.cur_scale) if self.deepspeed.fp16_enabled() and scaler else None
