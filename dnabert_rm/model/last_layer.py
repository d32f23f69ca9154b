"""The last encoder layer of a masked language model, on masked positions only.

Only the head reads the last layer's output, and the head runs on masked positions. In this layer, all positions are
needed as keys and values of the attention. What follows the attention is computed for the masked positions alone: the
output projection, the residuals, the norms and the feed-forward layers. The result is the same, to rounding.

Shapes: B windows, L tokens per window, H hidden size, M masked positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnabert_rm.model.build import encoder_layers


class LastLayer:
    """Replaces the forward pass of a model's last encoder layer.

    In a block `with last_layer.at(positions)`, the layer returns (M, H) instead of (B, L, H). The layer takes no part
    in activation checkpointing: its backward pass comes first, so it would be computed again before any memory is free.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Change the last layer of `model` in place. Its parameters and their names stay."""
        self.positions: Tensor | None = None
        layer: Any = encoder_layers(model)[-1]
        self._layer = layer
        self._masked: Callable[..., Tensor] = _masked_bert
        if model.config.model_type == "modernbert":
            self._masked = _masked_modernbert
            layer.attn.Wo.register_forward_pre_hook(self._cut_attention)
        layer.forward = self._forward
        # transformers 5.17 would run this forward pass again after `positions` has been reset.
        layer.gradient_checkpointing = False

    @contextlib.contextmanager
    def at(self, positions: Tensor) -> Iterator[None]:
        """Compute only these positions in the block. `positions` (M,) int64 are indices into the flattened batch."""
        if self._layer._compiled_call_impl is not None:
            torch._dynamo.maybe_mark_dynamic(positions, 0)  # or each number of masked positions would be compiled
        self.positions = positions
        try:
            yield
        finally:
            self.positions = None

    def _forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.positions is None:
            return type(self._layer).forward(self._layer, hidden, *args, **kwargs)
        return self._masked(self._layer, hidden, self.positions, *args, **kwargs)

    def _cut_attention(self, output_projection: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Give only the rows of masked positions to the output projection of a `modernbert`'s attention."""
        return None if self.positions is None else (_rows(inputs[0], self.positions),)


def _rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Return the hidden states at the positions, (B, L, H) → (M, H)."""
    return hidden.flatten(0, 1).index_select(0, positions)


def _masked_bert(layer: Any, hidden: Tensor, positions: Tensor, attention_mask: Any, *_: Any, **kwargs: Any) -> Tensor:
    """Run transformers' `BertLayer`, which here has no cross-attention and no cache."""
    context, _ = layer.attention.self(hidden, attention_mask, **_without_cache(kwargs))
    return layer.feed_forward_chunk(layer.attention.output(_rows(context, positions), _rows(hidden, positions)))


def _without_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in arguments.items() if name not in ("encoder_attention_mask", "past_key_values")
    }


def _masked_modernbert(layer: Any, hidden: Tensor, positions: Tensor, **kwargs: Any) -> Tensor:
    """Run transformers' `ModernBertEncoderLayer`, whose attention returns the rows of the masked positions."""
    attended, _ = layer.attn(layer.attn_norm(hidden), **kwargs)
    rows = _rows(hidden, positions) + attended
    return rows + layer.mlp(layer.mlp_norm(rows))
