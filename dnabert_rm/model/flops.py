"""Parameter and operation counts of a model, computed from its sizes, and peak FLOP/s of GPUs. Torch-free.

An operation is a floating-point operation. The product of an (m, k) and a (k, n) matrix takes 2mkn operations. Only
matrix products are counted, because norms, softmax and activations take less than 1 % of all operations. The backward
pass has two matrix products for each matrix product of the forward pass.

Sources:
- Kaplan et al., "Scaling Laws for Neural Language Models" (2020), section 2.1.
- Chowdhery et al., "PaLM" (2022), appendix B: defines model FLOPs utilization (MFU), which excludes
  recomputation.
- Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters" (2021), appendix: counts
  recomputation as an additional forward pass.

Symbols: H hidden size, I intermediate size, N layers, V vocabulary, L tokens per window.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace

from dnabert_rm.config import ModelConfig
from dnabert_rm.model.pretrained import model_fields

TOKEN_TYPES = 2
"""Number of rows in BERT's token type embedding."""
MAX_GLOBAL_POSITIONS = 1024
"""Up to this `max_positions`, every `modernbert` layer is global. Above it, two of three use a sliding window."""
SLIDING_REACH = 64
"""Number of tokens that a sliding `modernbert` layer attends to on each side (local_attention 128 in transformers)."""
GLOBAL_EVERY = 3
"""In a `modernbert` with sliding layers, the first of every three layers is global."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes that determine a model's parameter and operation counts, named as in `config.ModelConfig`."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int


def model_shape(model: ModelConfig, vocab_size: int) -> ModelShape:
    """Return the sizes of a configured model. If `init_from` is set, return the sizes of the model in that folder."""
    sizes = model_fields(model.init_from) if model.init_from else asdict(model)
    names = [field.name for field in fields(ModelShape) if field.name != "vocab_size"]
    return ModelShape(vocab_size=vocab_size, **{name: sizes[name] for name in names})


def parameter_tensors(shape: ModelShape) -> dict[str, list[tuple[int, int]]]:
    """Return the trained tensors of each part ("embeddings", "layers", "head") as (count, elements per tensor) pairs.

    These are the tensors that transformers builds from `build.transformers_config`. The decoder's matrix is tied to the
    token embedding and counted in "embeddings". The final norm of a `modernbert` is counted with its layers.
    """
    H, I, N, V = shape.hidden_size, shape.intermediate_size, shape.num_layers, shape.vocab_size  # noqa: E741
    if shape.architecture == "bert":
        return {
            "embeddings": [(1, V * H), (1, shape.max_positions * H), (1, TOKEN_TYPES * H), (2, H)],
            "layers": [(4 * N, H * H), (2 * N, H * I), (N, I), (9 * N, H)],
            "head": [(1, H * H), (3, H), (1, V)],
        }
    assert shape.architecture == "modernbert", shape.architecture
    return {
        "embeddings": [(1, V * H), (1, H)],
        # Wi holds the gate and the gated half. The first layer has no norm before its attention.
        "layers": [(N, 3 * H * H), (N, H * H), (N, 2 * H * I), (N, H * I), (2 * N - 1, H), (1, H)],
        "head": [(1, H * H), (1, H), (1, V)],
    }


def parameter_counts(shape: ModelShape) -> dict[str, int]:
    """Return the number of parameters in each part. These numbers add up to transformers' `num_parameters()`."""
    return {part: sum(count * numel for count, numel in tensors) for part, tensors in parameter_tensors(shape).items()}


def num_parameters(shape: ModelShape) -> int:
    """Return the total number of parameters, with the tied decoder counted once."""
    return sum(parameter_counts(shape).values())


def attended_tokens(shape: ModelShape, window: int) -> float:
    """Return how many tokens a token attends to, summed over the layers and averaged over the window.

    In a layer with sliding-window attention, only tokens at most `SLIDING_REACH` positions away count.
    """
    if shape.architecture == "bert" or shape.max_positions <= MAX_GLOBAL_POSITIONS:
        return float(shape.num_layers * window)
    num_global = -(-shape.num_layers // GLOBAL_EVERY)
    reach = min(SLIDING_REACH, window - 1)
    band = (2 * reach + 1) - reach * (reach + 1) / window  # the band without its corners at the window's ends
    return num_global * window + (shape.num_layers - num_global) * band


def forward_flops_per_token(shape: ModelShape, window: int, masked_fraction: float = 1.0) -> float:
    """Return the number of forward-pass operations per token, for windows of `window` tokens.

    For N layers, hidden size H, intermediate size I and vocabulary size V:

    - Matrix products of the layers: 2N(4H² + 2HI), or 2N(4H² + 3HI) with GeGLU.
    - Attention scores and their product with the values: 4H for each layer and each attended token.
    - Head: 2(H² + HV) for a masked token, and 0 for other tokens. The average is `masked_fraction` times 2(H² + HV).
    - In the last layer, other tokens have only 6H² and the attention (see model/last_layer.py).

    A `masked_fraction` of 1.0 means that head and last layer run on all positions, as in transformers.
    """
    return layer_flops_per_token(shape, window, masked_fraction) + masked_fraction * head_flops_per_token(shape)


def layer_flops_per_token(shape: ModelShape, window: int, masked_fraction: float = 1.0) -> float:
    """Return the number of forward-pass operations per token in all layers, attention included.

    `masked_fraction` is the share of tokens that the last layer computes after its attention.
    """
    H = shape.hidden_size
    matrices = 2 if shape.architecture == "bert" else 3
    before_attention = 6 * H * H
    after_attention = 2 * H * H + 2 * matrices * H * shape.intermediate_size
    products = shape.num_layers * before_attention + (shape.num_layers - 1 + masked_fraction) * after_attention
    return products + 4 * H * attended_tokens(shape, window)


def head_flops_per_token(shape: ModelShape) -> float:
    """Return the number of forward-pass operations in the head (dense layer and decoder) per predicted token."""
    return 2.0 * shape.hidden_size * (shape.hidden_size + shape.vocab_size)


def training_flops_per_token(
    shape: ModelShape, window: int, masked_fraction: float = 1.0, checkpointing: bool = False
) -> float:
    """Return the number of operations per token in the forward and backward pass: three times the forward pass.

    With activation `checkpointing`, the recomputed forward pass of the layers is added, without the last layer. The
    hardware runs this pass, but model FLOPs utilization (MFU) does not count it.
    """
    all_but_last = replace(shape, num_layers=shape.num_layers - 1)
    recomputed = layer_flops_per_token(all_but_last, window) if checkpointing else 0.0
    return 3 * forward_flops_per_token(shape, window, masked_fraction) + recomputed


def training_flops_per_step(
    shape: ModelShape, windows: int, window_tokens: int, num_masked: float, checkpointing: bool = False
) -> float:
    """Return the number of operations in one optimizer step on `windows` windows of `window_tokens` tokens.

    `num_masked` is the number of predicted tokens in all windows together. To get model FLOPs utilization (MFU; PaLM,
    appendix B), divide the result by the seconds per step, the number of ranks and `peak_flops`. With activation
    `checkpointing`, the quotient is hardware FLOPs utilization (HFU), which is higher than MFU.
    """
    tokens = windows * window_tokens
    return tokens * training_flops_per_token(shape, window_tokens, num_masked / max(1, tokens), checkpointing)


_PEAK_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("gb200",), 2500.0),
    (("b200",), 2250.0),
    (("gh200",), 989.4),
    (("h200", "nvl"), 835.5),
    (("h200",), 989.4),
    (("h100", "nvl"), 835.5),
    (("h100", "pcie"), 756.5),
    (("h100",), 989.4),
    (("h800",), 989.4),
    (("a100",), 312.0),
    (("a800",), 312.0),
    (("a40",), 149.7),
    (("a30",), 165.0),
    (("a10",), 125.0),
    (("a6000",), 154.8),
    (("rtx", "6000", "ada"), 364.2),
    (("l40s",), 362.1),
    (("l40",), 181.1),
    (("l4",), 121.0),
    (("rtx", "4090"), 165.2),
    (("rtx", "3090"), 71.0),
    (("v100",), 125.0),
    (("t4",), 65.0),
)
"""Words of a device's name, and its peak in TFLOP/s. The first row whose words are all in the name applies.

The figures are from NVIDIA's data sheets: dense, bf16 with fp32 accumulation. V100 (SXM2) and T4 have no bf16, so
their figures are for fp16. Figures that a data sheet gives with sparsity are halved.
"""


def peak_flops(device_name: str) -> float | None:
    """Return a GPU's peak in dense half-precision operations per second, or None if the GPU is not in the table.

    `device_name` is the name that torch reports, or a short one such as "h100". An H100 or H200 without "PCIe" or "NVL"
    in its name counts as the SXM module.
    """
    row = _row(device_name)
    return None if row is None else row[1] * 1e12


def short_name(device_name: str) -> str | None:
    """Return the name that `known_gpus` gives to the GPU `device_name`, or None if the GPU is not in the table."""
    row = _row(device_name)
    return None if row is None else " ".join(row[0])


def _row(device_name: str) -> tuple[tuple[str, ...], float] | None:
    """Return the first row of the table whose words are all in the name."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    return next((row for row in _PEAK_TFLOPS if words.issuperset(row[0])), None)


def known_gpus() -> list[str]:
    """Return the short names that `peak_flops` accepts."""
    return [" ".join(words) for words, _ in _PEAK_TFLOPS]
