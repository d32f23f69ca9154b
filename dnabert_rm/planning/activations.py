"""Activation memory of a model: the bytes that a forward pass keeps for the backward pass. Does not import torch.

Symbols: T = tokens in the micro-batch, H = hidden size, I = intermediate size, M = masked tokens, V = vocabulary size.

The estimate counts the tensors that autograd saves for the layers of the transformers library. For a `bert` layer in
half precision, without dropout and with I = 4H, these tensors take 32·T·H bytes. Korthikanti et al., "Reducing
Activation Recomputation in Large Transformer Models" (2022), section 4.1, give the same number if dropout masks and
attention matrices are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnabert_rm.model.flops import ModelShape

FP32_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """Forward pass of one micro-batch on one rank. `precision` is bf16, fp16 or fp32."""

    windows: int
    window_tokens: int
    num_masked: float
    precision: str
    attention: str = "sdpa"
    dropout: float = 0.0
    """Dropout of hidden states."""
    attention_dropout: float = 0.0
    checkpointing: bool = False
    on_gpu: bool = True

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return FP32_BYTES if self.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """Number of tokens in the micro-batch, T."""
        return self.windows * self.window_tokens

    @property
    def dropout_bytes(self) -> int:
        """Bytes of the mask of hidden dropout per value."""
        return self._mask_bytes if self.dropout else 0

    @property
    def attention_dropout_bytes(self) -> int:
        """Bytes of the mask of attention dropout per value."""
        return self._mask_bytes if self.attention_dropout else 0

    @property
    def _mask_bytes(self) -> int:
        """Bytes of a dropout mask per value: bool on a GPU, and the type of the values on a CPU."""
        return 1 if self.on_gpu else self.value_bytes

    @property
    def is_fused(self) -> bool:
        """Whether the attention kernel avoids storing the whole attention matrix.

        On a CPU with attention dropout, sdpa stores the matrix.
        """
        if self.attention == "sdpa" and not self.on_gpu:
            return not self.attention_dropout
        return self.attention != "eager"


def layer_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes that one layer keeps for the backward pass.

    A layer keeps norm statistics, dropout masks, attention matrices, and the following numbers of other values. T is
    the number of tokens, H the hidden size and I the intermediate size.

    - bert: 8·T·H for the input, q, k, v, the context, the sums before both norms, and the first norm's output; and
      2·T·I for the input and output of GELU.
    - modernbert: 10·T·H for the input, the outputs of both norms, the joint qkv, rotated q and k, the context, and the
      sum after attention; and 4·T·I for both halves of Wi's output, the activated half, and the product. The whole qkv
      is kept, since v is a view of qkv.
    """
    H, I, T = shape.hidden_size, shape.intermediate_size, work.tokens  # noqa: E741
    if shape.architecture == "bert":
        kept, dropped, norms = 8 * H + 2 * I, 2 * H, 4
    else:
        kept, dropped, norms = 10 * H + 4 * I, H + I, 2
    values = T * (work.value_bytes * kept + work.dropout_bytes * dropped + FP32_BYTES * norms)
    return values + _attention_bytes(shape, work)


def last_layer_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes that the last layer keeps for the backward pass.

    After the attention it has M masked tokens instead of T tokens (see model/last_layer.py). In addition to the values
    that `layer_bytes` lists, it keeps the context of the masked tokens.
    """
    H, I, T, M = shape.hidden_size, shape.intermediate_size, work.tokens, work.num_masked  # noqa: E741
    if shape.architecture == "bert":
        all_tokens, masked, dropped, norms = 5 * H, 4 * H + 2 * I, 2 * H, (0, 4)
    else:
        all_tokens, masked, dropped, norms = 8 * H, 3 * H + 4 * I, H + I, (1, 1)
    values = work.value_bytes * (T * all_tokens + M * masked) + M * work.dropout_bytes * dropped
    return values + FP32_BYTES * (T * norms[0] + M * norms[1]) + _attention_bytes(shape, work)


def _attention_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes that an attention kernel keeps besides its inputs and output.

    Fused kernels keep one number per query and head. "eager" without attention dropout keeps the attention
    probabilities. "eager" with attention dropout keeps the probabilities, the dropout mask, and the probabilities after
    dropout. On a CPU with attention dropout, sdpa is not fused and keeps the same three tensors in fp32.
    """
    w, half = work.value_bytes, work.value_bytes < FP32_BYTES
    rows = work.windows * shape.num_heads * work.window_tokens
    if work.is_fused:
        return rows * FP32_BYTES
    if work.attention == "sdpa":
        each, copies = 3 * FP32_BYTES, 3 if half else 0
    else:
        # modernbert's softmax is in fp32. Without dropout, its half-precision copy is kept too.
        upcast = half and shape.architecture == "modernbert"
        each = FP32_BYTES if upcast else w
        if work.attention_dropout:
            each += work.attention_dropout_bytes + w
        elif upcast:
            each += w
        copies = 0
    # Here modernbert copies v, so that the joint qkv is freed.
    copies -= 2 if shape.architecture == "modernbert" else 0
    return rows * work.window_tokens * each + copies * work.tokens * shape.hidden_size * w


def encoder_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes that the embeddings and layers keep at the end of the forward pass.

    With activation checkpointing, each layer but the last keeps only its input.
    """
    TH = work.tokens * shape.hidden_size
    layer = TH * work.value_bytes if work.checkpointing else layer_bytes(shape, work)
    # The sum before the first norm. A checkpointed modernbert also keeps the input of its last norm.
    ends = 2 if work.checkpointing and shape.architecture == "modernbert" else 1
    layers = (shape.num_layers - 1) * layer + last_layer_bytes(shape, work)
    return layers + TH * (ends * work.value_bytes + work.dropout_bytes)


def head_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes that the head keeps for the backward pass.

    M is the number of masked tokens, H the hidden size, and V the vocabulary size. The head keeps four M x H tensors in
    the training precision, and M x V log-probabilities in fp32.
    """
    return work.num_masked * (4 * shape.hidden_size * work.value_bytes + shape.vocab_size * FP32_BYTES)


def loss_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the bytes of temporary tensors at the end of the forward pass and the start of the backward pass.

    In fp32, the only temporary tensor is the gradient of the logits. In half precision, the tensors are the logits and
    two copies of their gradient, one in fp32 and one in half precision.
    """
    each = FP32_BYTES if work.value_bytes == FP32_BYTES else FP32_BYTES + 2 * work.value_bytes
    return work.num_masked * shape.vocab_size * each


def inner_gradient_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the peak memory for gradients of intermediate tensors in a layer's backward pass, in bytes.

    With a fused attention kernel, the peak is in the feed-forward part. Without a fused kernel, the peak can be in the
    attention part, where the gradients of two attention matrices exist at the same time. By then, the feed-forward
    activations are freed, so their size is subtracted from the size of the two gradients.
    """
    H, T, w = shape.hidden_size, work.tokens, work.value_bytes
    wide = (1 if shape.architecture == "bert" else 2) * shape.intermediate_size
    feed_forward = w * T * (2 * H + wide)
    matrix = T * shape.num_heads * work.window_tokens * (FP32_BYTES if work.attention == "sdpa" else w)
    return max(feed_forward, (2 * matrix - w * T * 2 * wide) if not work.is_fused else 0.0)


def last_inner_gradient_bytes(shape: ModelShape, work: Workload) -> float:
    """Return the peak memory for gradients of intermediate tensors in the last layer's backward pass, in bytes.

    Only its attention part has all tokens: the gradients of the layer's input, the context, q, k and v, and of two
    attention matrices if the attention kernel is not fused.
    """
    T, w = work.tokens, work.value_bytes
    matrix = T * shape.num_heads * work.window_tokens * (FP32_BYTES if work.attention == "sdpa" else w)
    return 5 * w * T * shape.hidden_size + (0.0 if work.is_fused else 2 * matrix)
