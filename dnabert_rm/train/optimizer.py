"""AdamW, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

PAPER_WARMUP_SHARE = 10_000 / 480_000
"""Share of warm-up steps in the training steps of the RandomMask paper (arXiv 2310.07644)."""


def warmup_length(warmup_steps: int, total_steps: int) -> int:
    """Return the number of warm-up steps: `warmup_steps`, or a default if `warmup_steps` is -1.

    The default is the same share of `total_steps` as in the RandomMask paper: 10,000 of 480,000.
    """
    return warmup_steps if warmup_steps >= 0 else round(total_steps * PAPER_WARMUP_SHARE)


def learning_rate(
    step: int, *, peak: float, schedule: str, warmup_steps: int, total_steps: int, decay_share: float = 0.1
) -> float:
    """Return the learning rate of a 0-based step: linear warm-up to `peak`, then `schedule`.

    With a warm-up, the learning rate of the first step is peak / warmup_steps, not 0. With "linear" and "cosine", the
    rate would reach 0 at step `total_steps`, one step after the last step. "wsd" means warm-up, stable, decay (Hu et
    al., "MiniCPM", 2024). With "wsd", the rate stays at `peak` until the last `decay_share * total_steps` steps, and
    then decays linearly to 0. A decay that would begin during the warm-up begins after it. With "constant", the rate
    stays at `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "wsd":
        decay_steps = max(1, min(round(total_steps * decay_share), total_steps - warmup_steps))
        return peak * min(1.0, max(0.0, (total_steps - step) / decay_steps))
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    assert schedule == "linear", schedule
    return peak * max(0.0, 1 - done)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices with weight decay, and vectors (biases and norms) without weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if _num_dims(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if _num_dims(p) < 2], "weight_decay": 0.0},
    ]


def _num_dims(parameter: nn.Parameter) -> int:
    """Return a parameter's number of dimensions. ZeRO-3 keeps the shape of a partitioned parameter in `ds_shape`."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def make_optimizer(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return torch's fused AdamW, which updates weights and moments in one pass on both GPUs and CPUs."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)
