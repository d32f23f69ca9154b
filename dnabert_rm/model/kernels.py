"""Choose how layers are computed: attention kernel, torch.compile, FP8, deterministic kernels."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedConfig

from dnabert_rm.config import ModelConfig
from dnabert_rm.utils.errors import ConfigError

SDPA_KERNELS = {
    "auto": (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
    "cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "flash": (SDPBackend.FLASH_ATTENTION,),
    "math": (SDPBackend.MATH,),
}
"""Kernels of torch's scaled_dot_product_attention for values of `model.attention`, the preferred one first."""
RECOMPILE_LIMIT = 64
"""Number of graphs that torch.compile may keep for the code of a layer. Its own limit, 8, can be too low: layers of
different kinds share their code, and windows may have several lengths."""

FLOAT8_MULTIPLE = 16
"""FP8 matrix products need sizes that are multiples of this number."""
FLOAT8_CAPABILITY = (8, 9)
"""Lowest CUDA compute capability with FP8 matrix products."""


def transformers_attention(attention: str) -> str:
    """Return transformers' name for a value of `model.attention`: "sdpa", "eager" or "flash_attention_2"."""
    return "sdpa" if attention in SDPA_KERNELS else attention


@contextlib.contextmanager
def attention_kernels(attention: str, deterministic: bool) -> Iterator[None]:
    """Context in which torch's attention uses the kernels that `model.attention` names.

    "sdpa", "eager" and "flash_attention_2" change nothing. With `deterministic`, cuDNN's kernel is left out, because
    its backward pass is not deterministic.
    """
    kernels = [
        kernel
        for kernel in SDPA_KERNELS.get(attention, ())
        if not (deterministic and kernel == SDPBackend.CUDNN_ATTENTION)
    ]
    with sdpa_kernel(kernels, set_priority=True) if kernels else contextlib.nullcontext():
        yield


def chosen_attention_kernel(
    model: ModelConfig, sizes: PreTrainedConfig, window: int, precision: str, device: torch.device
) -> str:
    """Return the name of the attention kernel that the current context gives a model, such as "flash_attention".

    `sizes` is the transformers configuration of the model.

    Raises `ConfigError` if no kernel that `model.attention` allows can run.
    """
    if transformers_attention(model.attention) != "sdpa":
        return model.attention
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = (1, sizes.num_attention_heads, window, sizes.hidden_size // sizes.num_attention_heads)
    query = torch.empty(size, dtype=dtype, device=device, requires_grad=True)
    try:
        number = torch._fused_sdp_choice(query, query, query, dropout_p=model.dropout_of_attention)
    except RuntimeError:
        number = -1
    if number < 0:
        raise ConfigError(
            f"model.attention: the kernel {model.attention} cannot run here (heads of {size[-1]}, "
            f"{precision}, {device.type}); choose auto"
        )
    return SDPBackend(number).name.lower()


@contextlib.contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Context in which torch uses deterministic kernels only, if `enabled`, and fails where it has none."""
    if not enabled:
        yield
        return
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers passes it to the package flash-attn
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # costs a kernel for each new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]


def is_compiled(model: ModelConfig, architecture: str, zero_stage: int, device: torch.device) -> bool:
    """Return whether a run compiles the layers.

    "auto" means yes for a `modernbert` on a GPU, where compiling saves two thirds of the memory traffic outside of
    matrix products, and no for a `bert`, where it saves almost nothing (`ELEMENTWISE_BYTES` in planning/roofline.py).
    It needs Triton, and is impossible under ZeRO-3.
    """
    if model.compile != "auto":
        return model.compile == "true"
    has_triton = importlib.util.find_spec("triton") is not None
    return architecture == "modernbert" and device.type == "cuda" and zero_stage < 3 and has_triton


def check_float8(
    sizes: PreTrainedConfig,
    *,
    num_tokens: int,
    precision: str,
    compiled: bool,
    zero_stage: int,
    device: torch.device,
) -> None:
    """Raise `ConfigError` with the reasons if `model.float8` is not possible.

    `num_tokens` is the number of tokens in a micro-batch. FP8 is fast only in compiled layers, and torchao's layers
    need whole weights, which ZeRO-3 does not keep.
    """
    odd = [size for size in (sizes.hidden_size, sizes.intermediate_size, num_tokens) if size % FLOAT8_MULTIPLE]
    problems = {
        "the package torchao, which is not installed": importlib.util.find_spec("torchao") is None,
        "--precision bf16": precision != "bf16",
        "--model.compile true": not compiled,
        "--ds-config zero1 or zero2": zero_stage == 3,
        f"sizes and tokens that are multiples of {FLOAT8_MULTIPLE} (not {', '.join(map(str, odd))})": bool(odd),
        "an H100 or a newer GPU": device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY,
    }
    if needed := [text for text, is_missing in problems.items() if is_missing]:
        raise ConfigError(f"model.float8: needs {' and '.join(needed)}; change that, or turn model.float8 off")


def convert_to_float8(layers: nn.ModuleList, *, emulated: bool = False) -> None:
    """Compute the linear layers of encoder `layers` in FP8, in place, through torchao.

    The parameters keep their names and types. With `emulated`, values are rounded to FP8 and multiplied in bf16, which
    runs anywhere, for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    for layer in layers:
        convert_to_float8_training(layer, config=Float8LinearConfig(emulate=emulated))


def compile_layers(layers: nn.ModuleList, *, checkpointing: bool) -> None:
    """Compile each layer, in place, so that identical layers share one graph.

    A layer must become one graph without breaks. With activation checkpointing breaks are allowed.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.compile(fullgraph=not checkpointing)


@contextlib.contextmanager
def uncompiled_layers(module: nn.Module) -> Iterator[None]:
    """Context in which the layers run uncompiled, and without FP8.

    For validations, whose batches have other sizes: each size would have to be compiled. And for comparisons with the
    exported model, which has no FP8.
    """
    float8 = [part for part in module.modules() if type(part).__name__ == "Float8Linear"]
    for part in float8:
        part.forward = functools.partial(nn.Linear.forward, part)  # type: ignore[arg-type, method-assign]
    try:
        with torch.compiler.set_stance("force_eager") if has_compiled_layers(module) else contextlib.nullcontext():
            yield
    finally:
        for part in float8:
            del part.forward


def has_compiled_layers(module: nn.Module) -> bool:
    """Return whether a layer of `module` is compiled."""
    return any(layer._compiled_call_impl is not None for layer in module.modules())
