"""What a forward pass keeps for the backward pass, in bytes, from a model's sizes. Torch-free.

The counts are those of transformers' layers as autograd keeps them; for `bert` without dropout they are the 32·T·H
bytes a layer (half precision, I = 4H) of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
Models" (2022), section 4.1, less its dropout masks and attention matrices.

Letters: T tokens of the micro-batch, H hidden size, I intermediate size, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnabert_rm.model.flops import ModelShape

FP32_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """One micro-batch of one rank, and how it is computed; `value_bytes` is 4 in fp32, 2 in bf16 and fp16."""

    windows: int
    window_tokens: int
    num_masked: float
    value_bytes: int
    attention: str = "sdpa"
    dropout: float = 0.0
    checkpointing: bool = False
    on_gpu: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch, T."""
        return self.windows * self.window_tokens

    @property
    def noise_bytes(self) -> int:
        """Bytes that dropout keeps for one value: a bool on a GPU, the value's own type on a CPU."""
        return (1 if self.on_gpu else self.value_bytes) if self.dropout else 0

    @property
    def is_fused(self) -> bool:
        """Whether attention never holds its whole matrix; sdpa has no such kernel for dropout on a CPU."""
        return self.attention != "eager" and not (self.attention == "sdpa" and self.dropout > 0 and not self.on_gpu)


def layer_bytes(shape: ModelShape, work: Workload) -> float:
    """What one layer keeps.

    bert: input, q, k, v, context, the sum before each norm and the first norm's output: 8 TH; around GELU: 2 TI.
    modernbert: input, two norms' outputs, the joint qkv (its v is a view, so all of it), turned q and k, context, the
    sum after attention: 10 TH; both halves of Wi, the activated one and the product: 4 TI.
    """
    H, I, T = shape.hidden_size, shape.intermediate_size, work.tokens  # noqa: E741
    if shape.architecture == "bert":
        kept, noise, norms = 8 * H + 2 * I, 2 * H, 4
    else:
        kept, noise, norms = 10 * H + 4 * I, H + I, 2
    values = T * (work.value_bytes * kept + work.noise_bytes * noise + FP32_BYTES * norms)
    return values + _attention_bytes(shape, work)


def _attention_bytes(shape: ModelShape, work: Workload) -> float:
    """What an attention kernel keeps besides its inputs and output.

    Fused kernels keep one number a row. "eager" keeps the probabilities, with dropout its mask and the product too;
    so does sdpa on a CPU with dropout, which has no fused kernel there, and computes in fp32.
    """
    w, half = work.value_bytes, work.value_bytes < FP32_BYTES
    rows = work.windows * shape.num_heads * work.window_tokens
    if work.is_fused:
        return rows * FP32_BYTES
    if work.attention == "sdpa":
        each, copies = 3 * FP32_BYTES, 3 if half else 0
    else:
        # modernbert's softmax is in fp32; without dropout its rounded copy is kept too.
        upcast = half and shape.architecture == "modernbert"
        each = (FP32_BYTES if upcast else w) + (work.noise_bytes + w if work.dropout else w if upcast else 0)
        copies = 0
    # A modernbert's v is copied here, which frees the joint qkv.
    copies -= 2 if shape.architecture == "modernbert" else 0
    return rows * work.window_tokens * each + copies * work.tokens * shape.hidden_size * w


def encoder_bytes(shape: ModelShape, work: Workload) -> float:
    """What embeddings and layers keep at the end of the forward pass; with checkpointing the layers' inputs only."""
    TH = work.tokens * shape.hidden_size
    layer = TH * work.value_bytes if work.checkpointing else layer_bytes(shape, work)
    # The sum before the first norm; a checkpointed modernbert also keeps the input of its last one.
    ends = 2 if work.checkpointing and shape.architecture == "modernbert" else 1
    return shape.num_layers * layer + TH * (ends * work.value_bytes + work.noise_bytes)


def head_bytes(shape: ModelShape, work: Workload) -> float:
    """What the head keeps: four tensors M x H, and the logarithms of the probabilities, M x V in fp32."""
    return work.num_masked * (4 * shape.hidden_size * work.value_bytes + shape.vocab_size * FP32_BYTES)


def loss_bytes(shape: ModelShape, work: Workload) -> float:
    """What comes on top of all that is kept while the loss is computed and its gradient begins.

    The gradient of the logits; in half precision in fp32 and in that, beside the logits themselves.
    """
    each = FP32_BYTES if work.value_bytes == FP32_BYTES else FP32_BYTES + 2 * work.value_bytes
    return work.num_masked * shape.vocab_size * each


def inner_gradient_bytes(shape: ModelShape, work: Workload) -> float:
    """What comes on top of a layer's own while its backward pass runs: gradients of its inner tensors.

    At the feed-forward part those of its width; or, without a fused kernel, two attention matrices, when what the
    feed-forward part kept is free again.
    """
    H, T, w = shape.hidden_size, work.tokens, work.value_bytes
    wide = (1 if shape.architecture == "bert" else 2) * shape.intermediate_size
    feed_forward = w * T * (2 * H + wide)
    matrix = T * shape.num_heads * work.window_tokens * (FP32_BYTES if work.attention == "sdpa" else w)
    return max(feed_forward, (2 * matrix - w * T * 2 * wide) if not work.is_fused else 0.0)
