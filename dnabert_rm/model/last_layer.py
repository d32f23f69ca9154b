"""The encoder's last layer on masked positions only.

Nothing reads what the last layer makes of the other positions: they matter to it as keys and values alone. So after
its attention only the masked positions go on, through the projection, the norms and the feed-forward layer, which are
about two thirds of a layer's work. Loss and gradients are the same.

Shapes: B windows, L tokens a window, H hidden size, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from dnabert_rm.model.build import encoder_layers


class Selection:
    """Which positions leave the last layer: `positions` (M,) int64 in the flattened batch, set before each forward."""

    positions: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """The chosen positions of (B, L, H), as one window (1, M, H)."""
        return hidden.flatten(0, 1).index_select(0, self.positions)[None]


def shorten_last_layer(model: PreTrainedModel) -> Selection:
    """Change `model` in place: its encoder answers (1, M, H), for the positions that the selection holds then.

    Activation checkpointing leaves this layer out, which costs no memory: its backward pass is the first.
    """
    layer, selection = encoder_layers(model)[-1], Selection()
    shortened = _bert if model.config.model_type == "bert" else _modernbert
    layer.forward = shortened(layer, selection)  # type: ignore[assignment]
    return selection


def _bert(layer: Any, selection: Selection) -> Callable[..., Tensor]:
    def forward(hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **options: Any) -> Tensor:
        attended = layer.attention.self(hidden, attention_mask=attention_mask, **_for_attention(options))[0]
        return layer.feed_forward_chunk(layer.attention.output(selection.of(attended), selection.of(hidden)))

    return forward


def _modernbert(layer: Any, selection: Selection) -> Callable[..., Tensor]:
    def forward(hidden: Tensor, **options: Any) -> Tensor:
        selected = selection.of(hidden + layer.attn(layer.attn_norm(hidden), **options)[0])
        return selected + layer.mlp(layer.mlp_norm(selected))

    return forward


def _for_attention(options: dict[str, Any]) -> dict[str, Any]:
    """BERT's options less those of a decoder, which this is not."""
    return {name: value for name, value in options.items() if name not in ("encoder_attention_mask", "past_key_values")}
