"""Parameters and floating-point operations of a model, from its sizes alone; what GPUs can do at most. Torch-free.

Conventions: a product of an (m, k) with a (k, n) matrix is 2mkn operations; only matrix products count, norms,
softmax and activations do not (they are below 1 %). The backward pass is two products for each of the forward's.
Sources: Kaplan et al., "Scaling Laws for Neural Language Models" (2020), section 2.1; Chowdhery et al., "PaLM" (2022),
appendix B, which defines MFU and leaves recomputation out of it; Narayanan et al., "Efficient Large-Scale Language
Model Training on GPU Clusters" (2021), appendix, which counts recomputation as a fourth forward pass.

Letters: H hidden size, I intermediate size, N layers, V vocabulary, L tokens a window.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

from dnabert_rm.config import ModelConfig
from dnabert_rm.model.pretrained import model_fields

TOKEN_TYPES = 2
"""Rows of BERT's token type embedding."""
MAX_GLOBAL_POSITIONS = 1024
"""Up to here every layer of a `modernbert` attends to the whole window; beyond, two layers in three slide."""
SLIDING_REACH = 64
"""Tokens to each side that a sliding layer of a `modernbert` sees (transformers: local_attention 128)."""
GLOBAL_EVERY = 3
"""Of so many layers of a long `modernbert` the first is global."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that parameters and operations hang on; names as in `config.ModelConfig`."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int


def parameter_tensors(shape: ModelShape) -> dict[str, list[tuple[int, int]]]:
    """Number and elements of the trained tensors, by part: "embeddings", "layers", "head".

    As transformers builds them through `build.transformers_config`. The decoder's matrix is the embedding's and
    counted there; the final norm of a `modernbert` counts as part of its layers.
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
        # Wi makes the gate and its input at once; the first layer has no norm before its attention.
        "layers": [(N, 3 * H * H), (N, H * H), (N, 2 * H * I), (N, H * I), (2 * N - 1, H), (1, H)],
        "head": [(1, H * H), (1, H), (1, V)],
    }


def parameter_counts(shape: ModelShape) -> dict[str, int]:
    """Parameters by part; their sum is the model's `num_parameters()`."""
    return {part: sum(count * numel for count, numel in tensors) for part, tensors in parameter_tensors(shape).items()}


def num_parameters(shape: ModelShape) -> int:
    """All parameters, the tied decoder counted once."""
    return sum(parameter_counts(shape).values())


def attended_tokens(shape: ModelShape, window: int) -> float:
    """Tokens that a token attends to, summed over the layers and averaged over the window.

    A sliding layer counts its band alone, whether or not the kernel computes more and throws it away.
    """
    if shape.architecture == "bert" or shape.max_positions <= MAX_GLOBAL_POSITIONS:
        return float(shape.num_layers * window)
    num_global = -(-shape.num_layers // GLOBAL_EVERY)
    reach = min(SLIDING_REACH, window - 1)
    band = (2 * reach + 1) - reach * (reach + 1) / window  # the band less its corners at the window's ends
    return num_global * window + (shape.num_layers - num_global) * band


def forward_flops_per_token(shape: ModelShape, window: int, masked_fraction: float = 1.0) -> float:
    """Operations of the forward pass for one token of a window of `window` tokens.

    Layers: 2N(4H² + 2HI), or 3HI with GeGLU. Attention: scores and their product with the values, 4H for each
    attended token. Head: 2(H² + HV) for the masked fraction; 1.0 gives the head on all positions, as others run it.
    """
    return layer_flops_per_token(shape, window) + masked_fraction * head_flops_per_token(shape)


def layer_flops_per_token(shape: ModelShape, window: int) -> float:
    """Operations of all layers' forward pass for one token, attention included."""
    H = shape.hidden_size
    matrices = 2 if shape.architecture == "bert" else 3
    products = 2 * shape.num_layers * (4 * H * H + matrices * H * shape.intermediate_size)
    return products + 4 * H * attended_tokens(shape, window)


def head_flops_per_token(shape: ModelShape) -> float:
    """Operations of the head's forward pass for one predicted token: its dense layer and the decoder."""
    return 2.0 * shape.hidden_size * (shape.hidden_size + shape.vocab_size)


def training_flops_per_token(
    shape: ModelShape, window: int, masked_fraction: float = 1.0, checkpointing: bool = False
) -> float:
    """Operations of forward and backward pass for one token: three forward passes.

    `checkpointing` adds the layers' second forward pass, which the hardware does and MFU does not count.
    """
    again = layer_flops_per_token(shape, window) if checkpointing else 0.0
    return 3 * forward_flops_per_token(shape, window, masked_fraction) + again


def training_flops_per_step(
    shape: ModelShape, windows: int, window_tokens: int, num_masked: float, checkpointing: bool = False
) -> float:
    """Operations of one optimizer step on `windows` windows of `window_tokens` tokens with `num_masked` predictions.

    Divided by seconds, ranks and `peak_flops` this is MFU (PaLM, appendix B); with `checkpointing` the hardware's
    own utilisation, HFU, which is higher.
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
"""Words of a device's name and its peak, first match first: NVIDIA's data sheets, dense (no sparsity), bf16 with fp32
accumulation in TFLOP/s; fp16 for V100 (SXM2) and T4, which have no bf16. Their sparse figures are halved."""


def peak_flops(device_name: str) -> float | None:
    """Peak dense half-precision operations a second of a GPU, by torch's name of it or a short one such as "h100".

    None where the table lacks it. An H100 or H200 without "PCIe" or "NVL" in its name is the SXM module.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    for needed, tflops in _PEAK_TFLOPS:
        if words.issuperset(needed):
            return tflops * 1e12
    return None


def known_gpus() -> list[str]:
    """Short names that `peak_flops` knows."""
    return [" ".join(words) for words, _ in _PEAK_TFLOPS]


def model_shape(model: ModelConfig, vocab_size: int) -> ModelShape:
    """The sizes of a configured model, those of the folder that it begins from if it does."""
    sizes = model_fields(model.init_from) if model.init_from else asdict(model)
    names = [field.name for field in fields(ModelShape) if field.name != "vocab_size"]
    return ModelShape(vocab_size=vocab_size, **{name: sizes[name] for name in names})
