"""Rates of the device itself: matrix products of the models' shapes, attention kernels, and kernel launches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from setting import Setting
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

ROWS = 64 * 512
"""Tokens in a step of `base`."""
SHAPES = {
    "base": ((768, 768), (768, 3072), (3072, 768)),
    "1b": ((2048, 6144), (2048, 2048), (2048, 11008), (5504, 2048)),
}
"""Inputs and outputs of the linear layers of two presets. The gate of 1b is in the layer of 11,008 outputs."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
NUM_ADDS = 10_000


def measure_device(_ranks: Any, setting: Setting, _reporter: Any) -> dict[str, Any]:
    """Return the device's name and memory, its rates (FLOP/s), and the times of attention and small operations."""
    on_gpu = setting.device == "cuda"
    shapes = SHAPES if on_gpu else {"base": ((64, 64),)}
    rows, square = (ROWS, 8192) if on_gpu else (128, 128)
    products = {
        f"{preset}, {inputs} to {outputs}": linear_rates(rows, inputs, outputs, setting.device)
        for preset, pairs in shapes.items()
        for inputs, outputs in pairs
    }
    # The square shows what the device reaches in products of convenient sizes.
    products["square"] = {"forward": linear_rates(square, square, square, setting.device)["forward"]}
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        "products_flops": products,
        "attention_milliseconds": attention_times(setting.device),
        "add_microseconds": add_times(setting.device),
    }


def linear_rates(rows: int, inputs: int, outputs: int, device: str) -> dict[str, float]:
    """Return the FLOP/s of a linear layer in bf16: forward, gradient of its input (dgrad) and of its weight (wgrad)."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    x, weight, dy = random(rows, inputs), random(outputs, inputs), random(rows, outputs)
    kinds: dict[str, Callable[[], Any]] = {
        "forward": lambda: x @ weight.T,
        "dgrad": lambda: dy @ weight,
        "wgrad": lambda: dy.T @ x,
    }
    return {name: 2 * rows * inputs * outputs / seconds_per_call(call, device) for name, call in kinds.items()}


def attention_times(device: str) -> dict[str, float | str]:
    """Return milliseconds, forward and backward, of a layer's attention in `base`, for each kernel and dropout.

    A kernel that is not available has the reason instead.
    """
    windows, heads, tokens = (64, 12, 512) if device == "cuda" else (1, 2, 64)
    # Heads and tokens are swapped in memory, as after the linear layers.
    shape = (windows, tokens, heads, 64)
    q, k, v = (
        torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)
    )
    gradient = torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2)
    times: dict[str, float | str] = {}
    for name, backend in BACKENDS.items():
        for dropout in (0.0, 0.1):

            def attend(dropout: float = dropout) -> None:
                output = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
                torch.autograd.grad(output, (q, k, v), gradient)

            try:
                with sdpa_kernel(backend):
                    times[f"{name}, dropout {dropout}"] = 1000 * seconds_per_call(attend, device)
            except RuntimeError as error:
                times[f"{name}, dropout {dropout}"] = " ".join(str(error).split())[:80]
    return times


def add_times(device: str) -> dict[str, float]:
    """Return microseconds of a small addition: until the host has queued it, and until the device has finished it."""
    small = torch.zeros(8, device=device)
    for _ in range(100):
        small.add_(1.0)
    wait(device)
    start = time.perf_counter()
    for _ in range(NUM_ADDS):
        small.add_(1.0)
    queued = time.perf_counter() - start
    wait(device)
    done = time.perf_counter() - start
    return {"host": 1e6 * queued / NUM_ADDS, "device": 1e6 * done / NUM_ADDS}


def seconds_per_call(call: Callable[[], Any], device: str) -> float:
    """Return the mean duration of a call, after some calls to warm up. The calls are queued without a pause."""
    num_calls, num_warm = (20, 5) if device == "cuda" else (2, 1)
    for _ in range(num_warm):
        call()
    wait(device)
    start = time.perf_counter()
    for _ in range(num_calls):
        call()
    wait(device)
    return (time.perf_counter() - start) / num_calls


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
